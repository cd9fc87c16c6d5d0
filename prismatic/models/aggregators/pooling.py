"""Aggregators without weights: concat, mean, spatial-pool, st-pool, token-merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from prismatic.models.aggregators import AGGREGATORS, PerClip


def grid_side(num_patches: int) -> int:
    """Side of the square grid of P patches. Raises ValueError when P is no square."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(
            f"--model.frame_aggregator spatial-pool needs a square grid of patches, got {num_patches} a frame"
        )
    return side


@AGGREGATORS.register("concat")
class Concat(nn.Module):
    """All features of all frames, in time: N = T P. What every published checkpoint was trained with."""

    def __init__(self, vision_dim: int, num_patches: int) -> None:
        super().__init__()

    def num_tokens(self, T: int, P: int) -> int:
        """T P."""
        return T * P

    def forward(self, features: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        """Features [F, P, Dv] to [F P, Dv]."""
        return features.flatten(0, 1)


@AGGREGATORS.register("mean")
class Mean(PerClip):
    """The mean over time of each patch: N = P."""

    def __init__(self, vision_dim: int, num_patches: int) -> None:
        super().__init__()

    def num_tokens(self, T: int, P: int) -> int:
        """P."""
        return P

    def clip(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, Dv] to [P, Dv]."""
        return features.mean(dim=0)


@AGGREGATORS.register("spatial-pool")
class SpatialPool(nn.Module):
    """Neighbouring patches of each frame pooled: N = T ceil(side / stride)^2.

    stride: patches pooled per side. mode: "average" or "max" of each window (the windows at the edge may be smaller),
    or "bilinear" resampling of the grid.
    """

    def __init__(
        self,
        vision_dim: int,
        num_patches: int,
        stride: int = 2,
        mode: Literal["average", "max", "bilinear"] = "average",
    ) -> None:
        super().__init__()
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(
                f"--model.frame_aggregator_options: stride must be a whole number from 1 on, got {stride!r}"
            )
        if mode not in ("average", "max", "bilinear"):
            raise ValueError(f"--model.frame_aggregator_options: mode must be average, max or bilinear, got {mode!r}")
        grid_side(num_patches)
        self.stride, self.mode = stride, mode

    def num_tokens(self, T: int, P: int) -> int:
        """T ceil(side / stride)^2."""
        return T * math.ceil(grid_side(P) / self.stride) ** 2

    def forward(self, features: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        """Features [F, P, Dv] to [F P', Dv], P' the pooled patches of a frame."""
        frames, P, Dv = features.shape
        side = grid_side(P)
        grid = features.transpose(1, 2).reshape(frames, Dv, side, side)
        if self.mode == "bilinear":
            out = math.ceil(side / self.stride)
            grid = F.interpolate(grid, size=(out, out), mode="bilinear", align_corners=False, antialias=False)
        elif self.mode == "max":
            grid = F.max_pool2d(grid, self.stride, ceil_mode=True)
        else:
            # Padding is never counted: a window at the edge is the mean of the patches that it holds.
            grid = F.avg_pool2d(grid, self.stride, ceil_mode=True, count_include_pad=False)
        return grid.flatten(2).transpose(1, 2).flatten(0, 1)


@AGGREGATORS.register("st-pool")
class SpatioTemporalPool(PerClip):
    """Video-ChatGPT: T means over space, then P means over time: N = T + P.

    frames: pad the temporal tokens with zeros to this many (100 in Video-ChatGPT, N = 356 for 256 patches).
    """

    def __init__(self, vision_dim: int, num_patches: int, frames: int | None = None) -> None:
        super().__init__()
        if frames is not None and (not isinstance(frames, int) or frames < 1):
            raise ValueError(
                f"--model.frame_aggregator_options: frames must be a whole number from 1 on, got {frames!r}"
            )
        self.frames = frames

    def num_tokens(self, T: int, P: int) -> int:
        """T + P, or frames + P. Raises ValueError when T is more than `frames`."""
        if self.frames is not None and T > self.frames:
            raise ValueError(
                f"a clip of {T} frames is longer than st-pool's {self.frames}; lower --model.num_frames or raise "
                "--model.frame_aggregator_options '{\"frames\": ...}'"
            )
        return (self.frames or T) + P

    def clip(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, Dv] to [T + P, Dv], the temporal tokens first."""
        T, P, _ = features.shape
        temporal = F.pad(features.mean(dim=1), (0, 0, 0, self.num_tokens(T, P) - P - T))
        return torch.cat([temporal, features.mean(dim=0)])


@AGGREGATORS.register("token-merge")
class TokenMerge(PerClip):
    """Similar features of a clip are merged, wherever and whenever they are: N = T min(P, tokens_per_frame).

    Bipartite soft matching (Bolya et al., "Token Merging", 2022) over the whole clip, so that a still background costs
    few tokens and motion keeps many. Each round splits the tokens in two halves, frames against frames or neighbours
    against neighbours in turn, and merges the likest quarter across. A merged token is the mean of all features in it
    and stands where its earliest one stood.
    """

    def __init__(self, vision_dim: int, num_patches: int, tokens_per_frame: int = 64) -> None:
        super().__init__()
        if not isinstance(tokens_per_frame, int) or tokens_per_frame < 1:
            raise ValueError(
                "--model.frame_aggregator_options: tokens_per_frame must be a whole number from 1 on, "
                f"got {tokens_per_frame!r}"
            )
        self.tokens_per_frame = tokens_per_frame

    def num_tokens(self, T: int, P: int) -> int:
        """T min(P, tokens_per_frame)."""
        return T * min(P, self.tokens_per_frame)

    def clip(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, Dv] to [N, Dv]."""
        T, P, Dv = features.shape
        tokens = features.reshape(T * P, Dv).float()
        sizes = tokens.new_ones(len(tokens), 1)
        places = torch.arange(len(tokens), device=tokens.device)
        wanted, turns = self.num_tokens(T, P), (T - 1).bit_length() + 1
        turn = 0
        while len(tokens) > wanted:
            if turn % turns < turns - 1:  # frames that differ in this bit of their number, in a chequered pattern
                first = ((places // P >> turn % turns) + places % P) % 2 == 0
            else:
                first = torch.arange(len(tokens), device=tokens.device) % 2 == 0
            if not first.all():
                count = min(len(tokens) - wanted, len(tokens) // 4 + 1, int(first.sum()))
                tokens, sizes, places = _merge(tokens, sizes, places, first, count)
            turn += 1
        return tokens.to(features.dtype)


def _merge(
    tokens: torch.Tensor, sizes: torch.Tensor, places: torch.Tensor, first: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `count` tokens of the first half that are likest to one of the other half are merged into it."""
    a, b = first.nonzero()[:, 0], (~first).nonzero()[:, 0]
    unit = F.normalize(tokens.detach(), dim=-1)
    likeness, partner = (unit[a] @ unit[b].T).max(dim=-1)  # [len(a)] each
    order = likeness.argsort(descending=True, stable=True)
    gone, kept, into = a[order[:count]], a[order[count:]], partner[order[:count]]
    total = sizes[b].index_add(0, into, sizes[gone])
    merged = (tokens[b] * sizes[b]).index_add(0, into, tokens[gone] * sizes[gone]) / total
    earliest = places[b].scatter_reduce(0, into, places[gone], reduce="amin")
    new_places, back = torch.cat([places[kept], earliest]).sort()
    return torch.cat([tokens[kept], merged])[back], torch.cat([sizes[kept], total])[back], new_places
