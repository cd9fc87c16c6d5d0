"""A medium of a record to the pixels that the vision backbone gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from prismatic.conf.data import DatasetConfig
from prismatic.types import ImageSpec, Medium
from prismatic.video.augment import augment
from prismatic.video.decode import open_video
from prismatic.video.frame_folder import open_frames
from prismatic.video.images import read_image
from prismatic.video.sampling import ClipFacts, sample
from prismatic.video.transforms import resize


@dataclass(frozen=True)
class MediaReader:
    """How media are read; the same for all of a dataset.

    num_frames: frames of a video, unless its row says otherwise. sampler, decoder, resize_strategy, augmentations: ids
    of their registries. short_clips: what becomes of a video with fewer frames ("repeat", "fewer", "error").
    """

    num_frames: int
    image_spec: ImageSpec
    sampler: str = "uniform"
    decoder: str = "pyav"
    short_clips: Literal["repeat", "fewer", "error"] = "repeat"
    resize_strategy: str = "letterbox"
    augmentations: tuple[str, ...] = ()

    def read(self, medium: Medium, rng: np.random.Generator) -> torch.Tensor:
        """Frames of a medium, uint8 [T, 3, R, R]. Only `rng` decides what is random.

        Raises MediaError (a ValueError) when the file cannot give them, ValueError when a clip is too short by policy.
        """
        frames = self._frames(medium, rng)
        return self.fit(augment(frames, self.augmentations, rng))

    def fit(self, frames: np.ndarray) -> torch.Tensor:
        """Frames uint8 [T, H, W, 3] as the vision backbone gets them, uint8 [T, 3, R, R]."""
        return resize(frames, self.image_spec, self.resize_strategy)

    def count(self, medium: Medium) -> int:
        """T of a medium without opening it; a bound from above where clips may give fewer."""
        if medium.kind == "video":
            return medium.num_frames or self.num_frames
        return len(medium.paths)

    def choose(self, facts: ClipFacts, medium: Medium, rng: np.random.Generator) -> np.ndarray:
        """Numbers of the frames to take of a video, int64 [T]. Raises ValueError that names it."""
        try:
            return sample(facts, self.count(medium), self.sampler, rng, self.short_clips)
        except ValueError as error:
            raise ValueError(f"{medium.paths[0]}: {error}") from error

    def _frames(self, medium: Medium, rng: np.random.Generator) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        if medium.kind == "image":
            return read_image(medium.paths[0])
        if medium.kind == "frames":
            with open_frames(medium.paths) as clip:
                return clip.get(np.arange(len(clip)))
        with open_video(medium.paths[0], self.decoder) as clip:
            return clip.get(self.choose(ClipFacts.of(clip), medium, rng))


def joined(clips: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Frames or features of several clips one after another; None of none. Those of one are not copied."""
    return torch.cat(tuple(clips)) if len(clips) > 1 else next(iter(clips), None)


def reader_of(
    data: DatasetConfig,
    num_frames: int,
    image_spec: ImageSpec,
    resize_strategy: str,
    augmentations: tuple[str, ...] = (),
) -> MediaReader:
    """How the media of a configured dataset are read. augmentations: those of training, none otherwise."""
    return MediaReader(
        num_frames=num_frames,
        sampler=data.sampler,
        decoder=data.decoder,
        short_clips=data.short_clips,
        image_spec=image_spec,
        resize_strategy=resize_strategy,
        augmentations=augmentations,
    )
