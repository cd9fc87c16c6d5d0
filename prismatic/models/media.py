"""What a caller may hand over as `frames` when asking a model, into the uint8 clips that a vision backbone takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from prismatic.types import ImageSpec

SHAPES = (
    "one PIL image, a list of PIL images (one clip), a path to an image, a video or a folder of frames, "
    "a uint8 array or tensor [T, H, W, 3], or a list of such clips"
)


@dataclass(frozen=True)
class EncodedClip:
    """A clip that went through vision backbone, aggregator and projector: `PrismaticVLM.encode_clips` gives it.

    Handed over in the place of a clip it saves that work for each further question. tokens: [N, D] on the model's
    device, of the weights that the model had then.
    """

    tokens: torch.Tensor


@dataclass(frozen=True)
class ClipReader:
    """Reads every form of a clip. num_frames: T of a video. strategy: id of the resize strategy."""

    spec: ImageSpec
    strategy: str
    num_frames: int

    def read(self, frames: Any) -> list[torch.Tensor | EncodedClip]:
        """The clips of one prompt, each uint8 [T, 3, R, R] or already encoded; none for None.

        An image is a clip of one frame; a video is sampled uniformly to num_frames (a shorter one repeats frames).
        Raises ValueError when a list or array of images has another length than num_frames, or for another type;
        MediaError (a ValueError) for a file that cannot be read.
        """
        if frames is None:
            return []
        if isinstance(frames, (list, tuple)) and not _is_one_clip(frames):
            return [self._clip(clip, listed=True) for clip in frames]
        return [self._clip(frames, listed=False)]

    def _clip(self, clip: Any, listed: bool) -> torch.Tensor | EncodedClip:
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

    def _read_path(self, path: str) -> np.ndarray:
        from prismatic.video.decode import is_video, open_video
        from prismatic.video.images import read_image
        from prismatic.video.sampling import ClipFacts, sample
        from prismatic.video.shards import is_shard_path
        from prismatic.video.storage import is_dir

        path = os.path.expanduser(path)
        if not is_video(path) and not is_shard_path(path) and not is_dir(path):
            return read_image(path)
        with open_video(path) as clip:
            facts = ClipFacts(len(clip), clip.fps, clip.timestamps)
            return clip.get(sample(facts, self.num_frames, "uniform", np.random.default_rng(0), short="repeat"))

    def _resize(self, frames: np.ndarray) -> torch.Tensor:
        from prismatic.video.transforms import resize

        return resize(frames, self.spec, self.strategy)


def _is_one_clip(items: Sequence[Any]) -> bool:
    """A list of single pictures is one clip; anything else is a list of clips. An empty list holds no clip at all."""
    return bool(items) and all(
        isinstance(i, Image.Image) or (isinstance(i, (np.ndarray, torch.Tensor)) and i.ndim == 3) for i in items
    )


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
