"""The media of an example, by way of the feature cache: features of those it has, frames of the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
import torch

from prismatic.data.feature_cache import FeatureCache, FeatureCacheError
from prismatic.data.feature_cache_entry import DamagedEntryError
from prismatic.data.feature_cache_notes import identify, is_as_before, remember_facts, remembered_facts
from prismatic.data.media import MediaReader, joined
from prismatic.types import CachedFeatures, Medium
from prismatic.video.decode import open_video
from prismatic.video.frame_folder import open_frames
from prismatic.video.images import read_image
from prismatic.video.sampling import ClipFacts, sample
from prismatic.video.storage import is_url

log = logging.getLogger(__name__)


class _NoDraws:
    """Stands for the random generator: features are kept of frames that are the same in every epoch."""

    def __init__(self, sampler: str) -> None:
        self.sampler = sampler

    def __getattr__(self, name: str) -> NoReturn:
        raise FeatureCacheError(
            f"--dataset.sampler {self.sampler} draws other frames in each epoch, and --dataset.feature_cache keeps "
            "features of the same frames; use a sampler that draws nothing (uniform, fps), or leave the cache out"
        )


@dataclass(frozen=True)
class ReadClip:
    """One medium. features [T, P, Dv] when the cache has it; else frames uint8 [T, 3, R, R] and the key to keep their
    features under ("": not to be kept). damaged: the cache had it, but not whole.
    """

    features: torch.Tensor | None = None
    frames: torch.Tensor | None = None
    key: str = ""
    damaged: bool = False

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.features if self.features is not None else cast(torch.Tensor, self.frames))


@dataclass(frozen=True)
class CachedReader:
    """Reads media with `read` where `cache` does not have their features. Raises FeatureCacheError for a reader whose
    pixels differ from epoch to epoch.
    """

    read: MediaReader
    cache: FeatureCache

    def __post_init__(self) -> None:
        if self.read.augmentations:
            raise FeatureCacheError(
                f"--dataset.augmentations {list(self.read.augmentations)} change the pixels in each epoch, and "
                "--dataset.feature_cache keeps features of the same pixels; leave one of the two out"
            )
        refuse_draws(self.read.sampler, self.read.num_frames)

    def clips(self, media: Sequence[Medium]) -> list[ReadClip]:
        """Each medium in turn. Raises as MediaReader.read, OSError for a missing file, ValueError for a URL."""
        return [self.clip(medium) for medium in media]

    def clip(self, medium: Medium) -> ReadClip:
        """One medium: on a hit no container is opened and nothing decoded."""
        known = identify(medium, self.cache.notes)
        if medium.kind != "video":
            return self._picture(medium, known.content, known.signature)
        facts = remembered_facts(known.content, self.read.decoder, self.cache.notes)
        damaged = False
        if facts is not None:
            found = self._lookup(self._key(medium, known.content, facts))
            if found.features is not None:
                return found
            damaged = found.damaged
        with open_video(medium.paths[0], self.read.decoder) as clip:
            opened = ClipFacts.of(clip)
            key = self._key(medium, known.content, opened)
            if facts is None:
                found = self._lookup(key)
                if found.features is not None and is_as_before(medium, known.signature):
                    remember_facts(known.content, self.read.decoder, opened, self.cache.notes)
                    return found
                damaged = found.damaged
            frames = self.read.fit(clip.get(self.read.choose(opened, medium, self.rng)))
        if not is_as_before(medium, known.signature):
            return ReadClip(frames=frames, damaged=damaged)  # the file was replaced while it was read
        remember_facts(known.content, self.read.decoder, opened, self.cache.notes)
        return ReadClip(frames=frames, key=key, damaged=damaged)

    def _picture(self, medium: Medium, content: str, signature: str) -> ReadClip:
        """An image, or a list of frames all of which are taken."""
        key = self.cache.key(content, medium.kind)
        found = self._lookup(key)
        if found.features is not None:
            return found
        if medium.kind == "image":
            pixels = read_image(medium.paths[0])
        else:
            with open_frames(medium.paths) as clip:
                pixels = clip.get(np.arange(len(clip)))
        key = key if is_as_before(medium, signature) else ""
        return ReadClip(frames=self.read.fit(pixels), key=key, damaged=found.damaged)

    def _key(self, medium: Medium, content: str, facts: ClipFacts) -> str:
        # Not the sampler's name but the numbers that it chooses: another sampler, or another version of one, that
        # takes the same frames finds the same features, and none that takes others.
        return self.cache.key(content, self.read.decoder, self.read.choose(facts, medium, self.rng).tolist())

    def _lookup(self, key: str) -> ReadClip:
        try:
            return ReadClip(features=self.cache.get(key))
        except DamagedEntryError as error:
            log.warning("Feature cache: %s; it is computed again", error)
            return ReadClip(damaged=True)

    @property
    def rng(self) -> np.random.Generator:
        """What samplers get: it raises FeatureCacheError as soon as one draws."""
        return cast(np.random.Generator, _NoDraws(self.read.sampler))


def join_clips(clips: Sequence[ReadClip]) -> tuple[torch.Tensor | None, CachedFeatures]:
    """(frames uint8 [F, 3, R, R] of the clips that the cache does not have, None without any; the rest)."""
    frames = [clip.frames for clip in clips if clip.frames is not None]
    features = [clip.features for clip in clips if clip.features is not None]
    return joined(frames), CachedFeatures(
        features=joined(features),
        keys=tuple(None if clip.features is not None else clip.key for clip in clips),
        damaged=sum(clip.damaged for clip in clips),
    )


def refuse_draws(sampler: str, num_frames: int) -> None:
    """Raises FeatureCacheError for a sampler that draws, UnknownIdError (a ValueError) for one that there is not."""
    sample(ClipFacts(1000, 25.0), num_frames, sampler, cast(np.random.Generator, _NoDraws(sampler)))


def refuse_urls(media_root: Any) -> None:
    """Raises FeatureCacheError for media that are not local files."""
    if is_url(media_root):
        raise FeatureCacheError(
            f"--dataset.feature_cache knows clips by the bytes of local files, and the media are at {media_root}; copy "
            "them to a local folder, or leave --dataset.feature_cache out"
        )
