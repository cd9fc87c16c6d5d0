"""What a caller may hand over as `frames` when asking a model, into the uint8 clips that a vision backbone takes."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from prismatic.types import ImageSpec

if TYPE_CHECKING:
    from prismatic.video.clip import Clip

SHAPES = (
    "one PIL image, a list of PIL images (one clip), a path to an image, a video or a folder of frames, "
    "a uint8 array or tensor [T, H, W, 3], or a list of such clips"
)


# A file that was written to this shortly ago may be written to again without a change of its time.
_SETTLED_S = 0.02
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A clip that went through vision backbone, aggregator and projector: `PrismaticVLM.encode_clips` gives it.

    Handed over in the place of a clip it saves that work for each further question, and most of the LLM's, too: the
    keys and values of visual tokens that the model has seen are used again. tokens: [N, D] on the model's device.
    frames: uint8 [T, 3, R, R] that they were made of; with them the clip is encoded anew where the model's weights
    have changed since. weights: mark of the weights that made the tokens. uid: another one for each clip.
    """

    tokens: torch.Tensor
    frames: torch.Tensor | None = None
    weights: bytes | None = None
    uid: int = field(default_factory=_numbers.__next__)

    @property
    def nbytes(self) -> int:
        """Bytes of tokens and frames."""
        return self.tokens.nbytes + (0 if self.frames is None else self.frames.nbytes)


@dataclass(frozen=True)
class ClipReader:
    """Reads every form of a clip. num_frames: T of a video. strategy, sampler: ids of how it is made square, and of
    which frames are taken.
    """

    spec: ImageSpec
    strategy: str
    num_frames: int
    sampler: str = "uniform"

    def read(self, frames: Any) -> list[torch.Tensor | EncodedClip]:
        """The clips of one prompt, each uint8 [T, 3, R, R] or already encoded; none for None.

        An image is a clip of one frame; a video is sampled to num_frames (a shorter one repeats frames).
        Raises ValueError when a list or array of images has another length than num_frames, or for another type;
        MediaError (a ValueError) for a file that cannot be read.
        """
        return [self.read_clip(*item) for item in self.clips(frames)]

    def clips(self, frames: Any) -> list[tuple[Any, bool]]:
        """The clips of one prompt as they were handed over, and whether they stood in a list of clips."""
        if frames is None:
            return []
        if isinstance(frames, (list, tuple)) and not _is_one_clip(frames):
            return [(clip, True) for clip in frames]
        return [(frames, False)]

    def key(self, clip: Any, listed: bool) -> object | None:
        """Equal for clips of equal content, read in the same way: of files by name, size and times, of pixels by their
        hash. None where it cannot be known, as of URLs.
        """
        content: object | None = None
        if isinstance(clip, (str, os.PathLike)):
            content = _file_key(os.path.expanduser(os.fspath(clip)))
        elif isinstance(clip, (Image.Image, np.ndarray, torch.Tensor)):
            content = pixels_key([clip])
        elif isinstance(clip, (list, tuple)) and _is_one_clip(clip):
            content = pixels_key(clip)
        # One frame in brackets is allowed in a list of clips, and refused elsewhere.
        bracketed = listed and isinstance(clip, (list, tuple, np.ndarray, torch.Tensor)) and len(clip) == 1
        return None if content is None else (content, bracketed, self)

    def read_clip(self, clip: Any, listed: bool) -> torch.Tensor | EncodedClip:
        """One clip of `clips`. Raises as `read`."""
        if isinstance(clip, EncodedClip):
            return clip
        if isinstance(clip, Image.Image):
            return self._resize(_pixels(clip)[None])
        if isinstance(clip, (str, os.PathLike)):
            return self._resize(self._read_path(os.fspath(clip)))
        if isinstance(clip, (np.ndarray, torch.Tensor)) and clip.ndim == 3:
            return self._resize(_pixels(clip)[None])
        if isinstance(clip, (list, tuple)) and clip and _is_one_clip(clip):
            sizes = {_pixels(image).shape for image in clip}
            self._check_length(len(clip), listed)
            if len(sizes) == 1:
                return self._resize(np.stack([_pixels(image) for image in clip]))
            return torch.cat([self._resize(_pixels(image)[None]) for image in clip])
        if isinstance(clip, (np.ndarray, torch.Tensor)) and clip.ndim == 4:
            self._check_length(len(clip), listed)
            return self._resize(_pixels(clip))
        raise ValueError(f"frames must be {SHAPES}; got {_describe(clip)}")

    def _check_length(self, length: int, listed: bool) -> None:
        # In a list of clips, one image in brackets is an image like any other.
        if length != self.num_frames and not (listed and length == 1):
            raise ValueError(
                f"got a list of {length} frames, but the model takes num_frames {self.num_frames}; hand over "
                f"{self.num_frames} frames, load the model with num_frames={length}, or give the path of the video, "
                "which is sampled"
            )

    def seconds(self, path: str) -> np.ndarray:
        """When the frames that are taken of a file or folder are shown, float64 [T], from its first frame on.

        [0] for an image, which is not looked at. Nothing is decoded. Raises MediaError.
        """
        from prismatic.video.decode import open_video

        path = os.path.expanduser(path)
        if not _moves(path):
            return np.zeros(1)
        with open_video(path) as clip:
            return clip.timestamps[self._chosen(clip)] - clip.timestamps[0]

    def _read_path(self, path: str) -> np.ndarray:
        from prismatic.video.decode import open_video
        from prismatic.video.images import read_image

        path = os.path.expanduser(path)
        if not _moves(path):
            return read_image(path)
        with open_video(path) as clip:
            return clip.get(self._chosen(clip))

    def _chosen(self, clip: Clip) -> np.ndarray:
        """Numbers int64 [T] of the frames that are taken of a clip."""
        from prismatic.video.sampling import ClipFacts, sample

        return sample(ClipFacts.of(clip), self.num_frames, self.sampler, np.random.default_rng(0), "repeat")

    def _resize(self, frames: np.ndarray) -> torch.Tensor:
        from prismatic.video.transforms import resize

        return resize(frames, self.spec, self.strategy)


def _moves(path: str) -> bool:
    """Whether a path is of a video, a folder of frames or a clip in a shard; otherwise it is of an image."""
    from prismatic.video.decode import is_video
    from prismatic.video.shards import is_shard_path
    from prismatic.video.storage import is_dir

    return is_video(path) or is_shard_path(path) or is_dir(path)


def _is_one_clip(items: Sequence[Any]) -> bool:
    """A list of single pictures is one clip; anything else is a list of clips. An empty list holds no clip at all."""
    return bool(items) and all(
        isinstance(i, Image.Image) or (isinstance(i, (np.ndarray, torch.Tensor)) and i.ndim == 3) for i in items
    )


def pixels_key(pictures: Sequence[Any]) -> object | None:
    """Hash of pixels with their shape and kind; None for arrays that are no pixels."""
    digest = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        if not isinstance(picture, Image.Image) and picture.dtype not in (np.uint8, torch.uint8):
            return None
        mode = picture.mode if isinstance(picture, Image.Image) else ""
        array = np.ascontiguousarray(picture.cpu() if isinstance(picture, torch.Tensor) else picture)
        digest.update(f"{type(picture).__name__} {mode} {array.shape};".encode())
        if isinstance(picture, Image.Image) and picture.mode == "P":
            digest.update(repr((picture.getpalette(), picture.info.get("transparency"))).encode())
        digest.update(array.data)
    return digest.digest()


def _file_key(path: str) -> object | None:
    """Name, size and times of a file, or of the files in a folder."""
    from prismatic.video.shards import is_shard_path, split_shard_path
    from prismatic.video.storage import is_url

    if is_url(path):
        return None
    try:
        file = split_shard_path(path)[0] if is_shard_path(path) else path
        if is_url(file):
            return None
        marks = [os.stat(file)]
        names = [os.path.realpath(path)]
        if os.path.isdir(file):
            entries = sorted(os.scandir(file), key=lambda entry: entry.name)
            names += [entry.name for entry in entries]
            marks += [os.stat(entry.path) for entry in entries]
    except OSError:  # reading it will say what is wrong
        return None
    if time.time() - max(mark.st_ctime for mark in marks) < _SETTLED_S:
        return None
    return tuple(names), tuple((m.st_ino, m.st_size, m.st_mtime_ns, m.st_ctime_ns) for m in marks)


def _pixels(picture: Any) -> np.ndarray:
    """uint8 [..., H, W, 3] of a PIL image, array or tensor. Raises ValueError for another dtype or shape."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    array = picture.cpu().numpy() if isinstance(picture, torch.Tensor) else picture
    if array.dtype != np.uint8 or array.shape[-1] != 3:
        raise ValueError(f"arrays of frames must be uint8 [T, H, W, 3] (RGB, 0 to 255), got {_describe(picture)}")
    return array


def _describe(thing: Any) -> str:
    if isinstance(thing, (np.ndarray, torch.Tensor)):
        return f"{type(thing).__name__} {thing.dtype} {list(thing.shape)}"
    if isinstance(thing, (list, tuple)):
        kinds = ", ".join(sorted({type(i).__name__ for i in thing})) or "nothing"
        return f"{type(thing).__name__} of {kinds}"
    return type(thing).__name__
