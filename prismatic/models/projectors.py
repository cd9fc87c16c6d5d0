"""Projectors: visual features of width Dv to the LLM's width D. State-dict keys are those of published checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from prismatic.models.seeding import seeded
from prismatic.registry import Registry

PROJECTORS: Registry[Callable[[int, int], nn.Module]] = Registry("projector", flag="--model.arch_specifier")
"""Each entry maps (Dv, D) to a module [..., Dv] -> [..., D]."""


class Projector(nn.Module):
    """Holds its layers under `projector`, so that keys read `projector.weight` or `projector.0.weight`."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.projector = layers

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [..., Dv] of any float dtype to [..., D] in the projector's."""
        return self.projector(features.to(next(self.parameters()).dtype))


@PROJECTORS.register("linear")
def linear(vision_dim: int, llm_dim: int) -> nn.Module:
    """One affine map."""
    return Projector(nn.Linear(vision_dim, llm_dim))


@PROJECTORS.register("gelu-mlp")
def gelu_mlp(vision_dim: int, llm_dim: int) -> nn.Module:
    """Two layers, as wide as the LLM."""
    return Projector(nn.Sequential(nn.Linear(vision_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim)))


@PROJECTORS.register("fused-gelu-mlp")
def fused_gelu_mlp(vision_dim: int, llm_dim: int) -> nn.Module:
    """Three layers, the first of width 4 Dv: for concatenated towers."""
    hidden = 4 * vision_dim
    return Projector(
        nn.Sequential(
            nn.Linear(vision_dim, hidden), nn.GELU(), nn.Linear(hidden, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim)
        )
    )


def build_projector(projector_id: str, vision_dim: int, llm_dim: int, seed: int | None = None) -> nn.Module:
    """The projector of an id (with or without `no-align+`), initialised from `seed` and nothing else.

    seed=None takes Dv, as the published runs did: the same encoder always starts from the same projector.
    """
    build = PROJECTORS.get(projector_id.removeprefix("no-align+"))
    with seeded(vision_dim if seed is None else seed):
        return build(vision_dim, llm_dim)
