"""Frame aggregators: how the features of a clip's frames become its visual tokens, in front of the projector.

An aggregator is a module built from (Dv, P, **options). `num_tokens(T, P)` is known before anything is decoded; forward
takes all frames of a batch and how many belong to each clip. A module of this package may add entries; it is imported
at the first look-up.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from prismatic.models.seeding import seeded
from prismatic.registry import Registry


class Aggregator(Protocol):
    """What the VLM uses of an aggregator (an nn.Module)."""

    def num_tokens(self, T: int, P: int) -> int:
        """N, visual tokens of a clip of T frames with P features each."""
        ...

    def __call__(self, features: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        """Features [F, P, Dv] of all clips, F = sum(frames_per_medium), to [V, Dv], V = sum of N, clips in order."""
        ...


AGGREGATORS: Registry[type[nn.Module]] = Registry(
    "frame aggregator", package="prismatic.models.aggregators", flag="--model.frame_aggregator"
)


class PerClip(nn.Module):
    """Base of aggregators that treat each clip by itself: `clip` maps [T, P, Dv] to [N, Dv]."""

    def clip(self, features: torch.Tensor) -> torch.Tensor:
        """One clip's features [T, P, Dv] to its tokens [N, Dv]."""
        raise NotImplementedError

    def forward(self, features: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        """Features [F, P, Dv] to [V, Dv]."""
        return torch.cat([self.clip(part) for part in features.split(list(frames_per_medium))])


def build_aggregator(
    aggregator_id: str, *, vision_dim: int, num_patches: int, seed: int = 0, options: dict[str, Any] | None = None
) -> nn.Module:
    """The aggregator of an id, with its options; learned weights depend on `seed` only.

    Raises UnknownIdError for an unknown id, ValueError for an unknown option (naming the known ones) or a bad value.
    """
    cls = AGGREGATORS.get(aggregator_id)
    known = [name for name in inspect.signature(cls).parameters if name not in ("vision_dim", "num_patches")]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ValueError(
            f"--model.frame_aggregator_options: '{aggregator_id}' has no option {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(map(repr, known)) or 'none'}"
        )
    with seeded(seed):
        return cls(vision_dim=vision_dim, num_patches=num_patches, **(options or {}))
