"""Aggregators with weights of their own: temporal-attention and resampler. They are trained with the projector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from prismatic.models.aggregators import AGGREGATORS, PerClip


def time_embedding(T: int, width: int, device: torch.device) -> torch.Tensor:
    """Sinusoids of the frame's number, fp32 [T, width]: defined for any T, so frame counts may differ."""
    half = (width + 1) // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=device) / max(half, 1))
    angles = torch.arange(T, device=device).float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]


class Attention(nn.Module):
    """Multi-head attention of queries [B, Q, Dv] over keys and values [B, K, Dv], with a pre-norm on both sides."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"--model.frame_aggregator_options: heads {heads} does not divide the vision width {width}"
            )
        self.heads = heads
        self.norm_q, self.norm_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Queries [B, Q, Dv], context [B, K, Dv] to [B, Q, Dv]."""
        q = self._split(self.q(self.norm_q(queries)))
        k, v = (self._split(x) for x in self.kv(self.norm_kv(context)).chunk(2, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@AGGREGATORS.register("temporal-attention")
class TemporalAttention(nn.Module):
    """Each patch attends to itself in the other frames of its clip, then time is averaged (or kept).

    The output projections start at zero, so a new module with pool "mean" equals the `mean` aggregator and with "none"
    equals `concat`. layers, heads: of the attention over time. pool: "mean" (N = P) or "none" (N = T P).
    """

    def __init__(
        self,
        vision_dim: int,
        num_patches: int,
        layers: int = 1,
        heads: int = 8,
        pool: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        if pool not in ("mean", "none"):
            raise ValueError(f"--model.frame_aggregator_options: pool must be mean or none, got {pool!r}")
        self.pool = pool
        self.layers = nn.ModuleList(Attention(vision_dim, heads) for _ in range(layers))
        for layer in self.layers:
            nn.init.zeros_(layer.out.weight)
            nn.init.zeros_(layer.out.bias)

    def num_tokens(self, T: int, P: int) -> int:
        """P, or T P without pooling."""
        return P if self.pool == "mean" else T * P

    def forward(self, features: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        """Features [F, P, Dv] to [V, Dv]. Clips of the same length go through the attention together."""
        features = features.to(next(self.parameters()).dtype)
        clips = features.split(list(frames_per_medium))
        done: dict[int, torch.Tensor] = {}
        for T in sorted(set(frames_per_medium)):
            which = [i for i, count in enumerate(frames_per_medium) if count == T]
            mixed = self._mix(torch.stack([clips[i] for i in which]))  # [n, T, P, Dv]
            done.update(zip(which, mixed.mean(dim=1) if self.pool == "mean" else mixed.flatten(1, 2), strict=True))
        return torch.cat([done[i] for i in range(len(clips))])

    def _mix(self, clips: torch.Tensor) -> torch.Tensor:
        count, T, P, Dv = clips.shape
        x = clips.transpose(1, 2).reshape(count * P, T, Dv)
        time = time_embedding(T, Dv, x.device).to(x.dtype)
        for layer in self.layers:
            x = x + layer(x + time, x + time)
        return x.reshape(count, P, T, Dv).transpose(1, 2)


@AGGREGATORS.register("resampler")
class Resampler(PerClip):
    """A fixed number of learned queries read the whole clip (a Perceiver resampler): N = tokens for any T.

    tokens: N. layers: rounds of cross-attention and MLP. heads: of the attention.
    """

    def __init__(self, vision_dim: int, num_patches: int, tokens: int = 64, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        if not isinstance(tokens, int) or tokens < 1:
            raise ValueError(
                f"--model.frame_aggregator_options: tokens must be a whole number from 1 on, got {tokens!r}"
            )
        self.queries = nn.Parameter(torch.randn(tokens, vision_dim) * vision_dim**-0.5)
        self.attentions = nn.ModuleList(Attention(vision_dim, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(vision_dim),
                nn.Linear(vision_dim, 4 * vision_dim),
                nn.GELU(),
                nn.Linear(4 * vision_dim, vision_dim),
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(vision_dim)

    def num_tokens(self, T: int, P: int) -> int:
        """The number of queries."""
        return self.queries.shape[0]

    def clip(self, features: torch.Tensor) -> torch.Tensor:
        """[T, P, Dv] to [tokens, Dv]."""
        T, _, Dv = features.shape
        features = features.to(self.queries.dtype)
        context = features + time_embedding(T, Dv, features.device).to(features.dtype)[:, None]
        context = context.flatten(0, 1)[None]
        x = self.queries[None]
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            x = x + attention(x, torch.cat([context, x], dim=1))
            x = x + mlp(x)
        return self.norm(x)[0]
