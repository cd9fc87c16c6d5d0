"""A run's feature cache: bound to the tower as it computes, filled on the way, and accounted for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn

from prismatic import dist
from prismatic.conf.data import DatasetConfig
from prismatic.conf.run import PretrainConfig
from prismatic.data.feature_cache import FeatureCache
from prismatic.data.feature_cache_reader import CachedReader, refuse_draws, refuse_urls
from prismatic.data.feature_cache_size import GB, amount
from prismatic.data.feature_cache_writer import FeatureWriter
from prismatic.data.media import reader_of
from prismatic.data.weave import WovenEpochs
from prismatic.dist import World
from prismatic.models.vision.fingerprint import fingerprint
from prismatic.train.feature_estimate import estimate
from prismatic.types import Batch, ImageSpec, Medium, Record

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)

LISTED_ROWS = 20_000  # looked at for the figure of what is saved; less than a second


def recipe(tower: nn.Module, backbone_id: str, spec: ImageSpec, resize_strategy: str) -> dict[str, Any]:
    """All that features depend on beside the clip, as FeatureCache.bind takes it. The tower's weights are final."""
    return {
        "vision_backbone_id": backbone_id.removeprefix("video-"),
        "encoder": fingerprint(tower),
        "image_spec": asdict(spec),
        "resize_strategy": resize_strategy,
    }


def cache_of(cfg: PretrainConfig) -> FeatureCache | None:
    """The feature cache of a run, of which the vision backbone is frozen; None when it has none. Needs no model.

    Raises ValueError for a sampler that draws, media that are not local files, or a folder that cannot be made.
    """
    data = _caching(cfg)
    return open_cache(data, cfg.stage, cfg.model.num_frames) if data is not None else None


def open_cache(data: DatasetConfig, stage: str, num_frames: int) -> FeatureCache:
    """The folder that `data.feature_cache` names. Raises ValueError as `cache_of`."""
    assert data.feature_cache is not None
    refuse_draws(data.sampler, num_frames)
    refuse_urls(data.components(stage)[1])
    limit = None if data.feature_cache_limit is None else int(data.feature_cache_limit * GB)
    return FeatureCache(data.feature_cache, data.feature_cache_dtype, limit)


def distinct_media(records: Sequence[Sequence[Record]], epochs: int, every: int = 1) -> list[Medium]:
    """The clips of every so manieth row of `epochs` epochs, each once, in the order of first appearance."""
    rows = (records[epoch][i] for epoch in _passes(records, epochs) for i in range(0, len(records[epoch]), every))
    return list(dict.fromkeys(medium for record in rows for medium in record.media))


def some_media(records: Sequence[Sequence[Record]], epochs: int) -> tuple[list[Medium], int]:
    """(distinct clips of up to LISTED_ROWS rows, number of distinct clips or, of more rows, a bound from above)."""
    rows = sum(len(records[epoch]) for epoch in _passes(records, epochs))
    every = -(-rows // LISTED_ROWS)
    media = distinct_media(records, epochs, every)
    return media, len(media) * every


class FeatureRun:
    """The feature cache in a training run. train, val: rows of each epoch, for the figure of what is saved;
    of the validation data by name.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        cache: FeatureCache,
        train: Sequence[Sequence[Record]],
        val: Mapping[str, Sequence[Sequence[Record]]],
    ) -> None:
        self.cfg, self.cache, self.writer = cfg, cache, FeatureWriter(cache)
        # Of the first dataset that has one.
        caching = [val[name] for name, data in cfg.validation_datasets().items() if data.feature_cache is not None]
        self._records = train if cfg.dataset.feature_cache is not None else caching[0]
        self._counts = [0, 0, 0]

    def start(self, vlm: PrismaticVLM, world: World) -> None:
        """Bind the cache to the tower, say what it will save, and have the model keep what it computes.

        After the last change of weights (a resumed run brings its frozen ones along), before the first batch is read:
        reading processes inherit the binding.
        """
        tower = vlm.vision_backbone
        assert isinstance(tower, nn.Module)
        self.cache.bind(recipe(tower, self.cfg.model.vision_backbone_id, tower.image_spec, vlm.resize_strategy))
        vlm.feature_keeper = self.writer
        data = _caching(self.cfg)
        if dist.rank_zero() and data is not None:
            epochs = self.cfg.model.stage(self.cfg.stage).epochs
            read = reader_of(data, self.cfg.model.num_frames, tower.image_spec, vlm.resize_strategy)
            media, total = some_media(self._records, epochs)
            reader = CachedReader(read, self.cache)
            for line in estimate(reader, tower, media, world.device, total=total, epochs=epochs):
                log.info(line)

    def add(self, batches: Iterable[Batch]) -> None:
        """Account for the clips of a step of this process."""
        for cache in [batch.cache for batch in batches if batch.cache is not None]:
            found = sum(key is None for key in cache.keys)
            for i, count in enumerate((found, len(cache.keys) - found, cache.damaged)):
                self._counts[i] += count

    def end_epoch(self, epoch: int) -> None:
        """Wait for the disk, and say what came out of the cache; every process calls it."""
        self.writer.flush()
        writer = self.writer
        found, computed, damaged, stored, added = dist.all_reduce_sum([*self._counts, writer.stored, writer.added])
        self._counts, writer.stored, writer.added = [0, 0, 0], 0, 0
        # Processes that share each batch read the same clips.
        found, computed, damaged = (count / self.cfg.context_parallel_size for count in (found, computed, damaged))
        if dist.rank_zero() and found + computed:
            text = f"Features of epoch {epoch + 1}: {found:.0f} of {found + computed:.0f} clips out of the cache"
            validated = any(data.feature_cache is not None for data in self.cfg.validation_datasets().values())
            too = ", those of validation among them" if validated else ""
            text += f", {stored:.0f} added ({amount(added)}{too})" if stored else ""
            text += f", {damaged:.0f} damaged entries computed again" if damaged else ""
            log.info(text)

    def __enter__(self) -> FeatureRun:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the disk."""
        self.writer.flush()


def _passes(records: Sequence[Sequence[Record]], epochs: int) -> range:
    return range(epochs if isinstance(records, WovenEpochs) else min(epochs, len(records)))


def _caching(cfg: PretrainConfig) -> DatasetConfig | None:
    """The dataset that asks for a feature cache; of several they are the same folder."""
    datasets = (cfg.dataset, *cfg.validation_datasets().values())
    return next((data for data in datasets if data.feature_cache is not None), None)
