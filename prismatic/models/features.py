"""Features of a batch whose clips come partly as frames and partly out of a feature cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from prismatic.types import Batch


class FeatureKeeper(Protocol):
    """Who keeps features for later. dtype: precision that they are kept in."""

    @property
    def dtype(self) -> torch.dtype: ...

    def keep(self, keys: Sequence[str], clips: Sequence[torch.Tensor]) -> None:
        """Take the features [T, P, Dv] of clips over, each under its key."""
        ...


def batch_features(tower: nn.Module, batch: Batch, keeper: FeatureKeeper) -> torch.Tensor:
    """Features [F, P, Dv] of all clips of a batch, in order, in the tower's dtype; those that are new are kept.

    New ones pass through the keeper's precision like kept ones, so that what a batch gives never depends on what the
    cache happened to have: a run and its resumption see the same. The tower must be frozen. Without a frame that is
    new the tower does not run.
    """
    cache = batch.cache
    assert cache is not None and len(cache.keys) == len(batch.frames_per_medium)
    missing = [T for T, key in zip(batch.frames_per_medium, cache.keys, strict=True) if key is not None]
    fresh: list[torch.Tensor] = []
    if missing:
        with torch.no_grad():
            fresh = list(tower(batch.frames).to(keeper.dtype).split(missing))
        keeper.keep([key for key in cache.keys if key is not None], fresh)
    if cache.features is None:
        features = torch.cat(fresh)
    elif not fresh:
        features = cache.features
    else:
        known = [T for T, key in zip(batch.frames_per_medium, cache.keys, strict=True) if key is None]
        ours, theirs = iter(fresh), iter(cache.features.split(known))
        features = torch.cat([next(theirs if key is None else ours) for key in cache.keys])
    return features.to(next(tower.parameters()).dtype)
