"""Clips that are stored as pictures: a folder of frames, or a list of image files."""

from __future__ import annotations

import json
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prismatic.video.clip import Clip, MediaError
from prismatic.video.images import IMAGE_EXTENSIONS, read_image
from prismatic.video.storage import join, list_names, read_bytes

DECODER = "frame-folder"
MANIFEST = "manifest.json"
UNKNOWN_FPS = 1.0
"""Frames per second of pictures that nothing is known about: their timestamps are then their numbers."""


class PictureClip(Clip):
    """Frames that are pictures of their own, decoded when asked for.

    All frames come back in the size of the first picture. One of another size is scaled to fit inside and centred on
    black, so that its proportions stay.
    """

    def __init__(self, source: object, decoder: str, *, timestamps: np.ndarray, fps: float) -> None:
        # Read whole: of a PNG even the orientation, and so the size, may stand behind the pixels.
        self._first = next(self._pictures([0]))
        height, width = self._first.shape[:2]
        super().__init__(source, decoder, timestamps=timestamps, fps=fps, size=(width, height))

    @abstractmethod
    def _pictures(self, indices: list[int]) -> Iterator[np.ndarray]:
        """Pictures uint8 [H, W, 3] in turn, each in its own size."""

    def _read(self, indices: list[int]) -> Iterator[np.ndarray]:
        if indices[0] == 0:
            yield self._first
        yield from map(self._fit, self._pictures([index for index in indices if index]))

    def _fit(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        if (width, height) == (self.width, self.height):
            return frame
        scale = min(self.width / width, self.height / height)
        size = (max(1, min(self.width, round(width * scale))), max(1, min(self.height, round(height * scale))))
        canvas = np.zeros((self.height, self.width, 3), np.uint8)
        left, top = (self.width - size[0]) // 2, (self.height - size[1]) // 2
        small = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
        canvas[top : top + size[1], left : left + size[0]] = np.asarray(small)
        return canvas


class ImageListClip(PictureClip):
    """Frames from image files, local or by URL."""

    def __init__(self, source: object, paths: Sequence[str], *, timestamps: np.ndarray, fps: float) -> None:
        self.paths = tuple(paths)
        super().__init__(source, DECODER, timestamps=timestamps, fps=fps)

    def _pictures(self, indices: list[int]) -> Iterator[np.ndarray]:
        return (read_image(self.paths[index])[0] for index in indices)


def open_frames(paths: Sequence[str | os.PathLike[str]]) -> Clip:
    """A list of image files as one clip, in the order given; its timestamps are 0, 1, 2, ... seconds.

    Raises MediaError when the list is empty or the first file is no image (the others are read when asked for).
    """
    if not paths:
        raise MediaError("list of frames", DECODER, "the list is empty")
    timestamps = np.arange(len(paths), dtype=np.float64) / UNKNOWN_FPS
    return ImageListClip(paths[0], [os.fspath(path) for path in paths], timestamps=timestamps, fps=UNKNOWN_FPS)


def open_folder(path: str | os.PathLike[str]) -> Clip:
    """A folder of PNG or JPEG frames as a clip, in natural order of their names (frame2 before frame10).

    `manifest.json` in it, {"indices": [...], "num_frames": N, "fps": r}, says which frames of a source of N frames at r
    per second these are; timestamps then are those frames' times in the source. Files of other kinds and hidden files
    are left out. Raises MediaError when there is no image, or the manifest does not fit the folder.
    """
    try:
        names = list_names(path)
    except OSError as error:
        raise MediaError(path, DECODER, f"the folder cannot be listed ({error.strerror})") from error
    frames = [n for n in names if Path(n).suffix.lower() in IMAGE_EXTENSIONS and not n.startswith(".")]
    if not frames:
        kinds = ", ".join(sorted(IMAGE_EXTENSIONS))
        raise MediaError(path, DECODER, f"a folder with no image in it ({len(names)} other files; images are {kinds})")
    frames.sort(key=_natural)
    fps = UNKNOWN_FPS
    timestamps = np.arange(len(frames), dtype=np.float64) / fps
    if MANIFEST in names:
        timestamps, fps = _read_manifest(path, len(frames))
    return ImageListClip(path, [join(path, name) for name in frames], timestamps=timestamps, fps=fps)


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _read_manifest(folder: str | os.PathLike[str], num_images: int) -> tuple[np.ndarray, float]:
    try:
        manifest: Any = json.loads(read_bytes(join(folder, MANIFEST)))
    except (OSError, ValueError) as error:
        raise MediaError(folder, DECODER, f"{MANIFEST} cannot be read ({error})") from error
    return frame_times(manifest, num_images, folder)


def frame_times(manifest: Any, num_images: int, source: object) -> tuple[np.ndarray, float]:
    """Timestamps float64 [num_images] in seconds, and the mean rate of the frames that are there, by a manifest.

    Raises MediaError when the manifest is none, or is not that of `num_images` frames.
    """
    if not isinstance(manifest, dict):
        raise MediaError(source, DECODER, f"{MANIFEST} must be an object with 'indices', 'num_frames' and 'fps'")
    indices, total = manifest.get("indices"), manifest.get("num_frames")
    rate = manifest.get("fps") or UNKNOWN_FPS
    whole = isinstance(indices, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in indices)
    if not whole or not isinstance(rate, int | float) or rate <= 0:
        raise MediaError(source, DECODER, f"{MANIFEST}: 'indices' must be a list of whole numbers, 'fps' above 0")
    if len(indices) != num_images or not indices:
        raise MediaError(
            source,
            DECODER,
            f"{MANIFEST} lists {len(indices)} frames, the folder has {num_images} images; extract it again",
        )
    steps = np.diff(indices)
    if indices[0] < 0 or (steps < 0).any() or (isinstance(total, int) and indices[-1] >= total):
        raise MediaError(source, DECODER, f"{MANIFEST}: 'indices' must ascend from 0 or more and stay below {total}")
    timestamps = np.asarray(indices, np.float64) / float(rate)
    span = timestamps[-1] - timestamps[0]
    return timestamps, (len(indices) - 1) / span if span > 0 else float(rate)
