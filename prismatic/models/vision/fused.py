"""Two towers side by side: their features are concatenated on the channel axis (DINOv2 + SigLIP, DINOv2 + CLIP)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from prismatic.models.vision.timm_vit import TimmViT, ViTSpec


class FusedViT(nn.Module):
    """Several ViTs over the same frames: uint8 [F, 3, R, R] to [F, P, Dv], Dv the sum of the towers' widths.

    Each tower normalises for itself. State-dict prefixes are `{name}_featurizer.`, as in published checkpoints.
    Raises ValueError when the towers disagree about P or R.
    """

    def __init__(self, towers: dict[str, TimmViT]) -> None:
        super().__init__()
        if len({(t.num_patches, t.image_spec.resolution) for t in towers.values()}) != 1:
            sizes = {name: (t.num_patches, t.image_spec.resolution) for name, t in towers.items()}
            raise ValueError(f"towers of a fused backbone must have the same patches and resolution, got {sizes}")
        for name, tower in towers.items():
            self.add_module(f"{name}_featurizer", tower.featurizer)
        # Outside the module tree: each featurizer is already a child under its published name.
        self.__dict__["_towers"] = tuple(towers.values())
        first, *_, last = towers.values()
        self.num_patches = first.num_patches
        self.embed_dim = sum(tower.embed_dim for tower in towers.values())
        # The published `resize-crop` of these pairs scales as the second tower asks (SigLIP: shortest side to R).
        spec = first.image_spec
        self.image_spec = type(spec)(spec.resolution, spec.mean, spec.std, spec.interpolation, last.image_spec.crop_pct)
        self.eval()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Features [F, P, Dv], the towers' in the order of construction."""
        return torch.cat([tower(frames) for tower in self._towers], dim=-1)

    def used_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that the features depend on."""
        return [p for tower in self._towers for p in tower.used_parameters()]

    def train(self, mode: bool = True) -> FusedViT:
        """Stays in eval mode: features must not depend on dropout or stochastic depth."""
        return super().train(False)


@dataclass(frozen=True)
class FusedSpec:
    """A row of the zoo: named towers, first one first on the channel axis."""

    towers: tuple[tuple[str, ViTSpec], ...]

    @property
    def origin(self) -> str:
        """Where the weights come from, for tables."""
        return " + ".join(spec.origin for _, spec in self.towers)

    def build(self, *, pretrained: bool, seed: int) -> nn.Module:
        """The backbone."""
        return FusedViT(
            {name: spec.build(pretrained=pretrained, seed=seed + i) for i, (name, spec) in enumerate(self.towers)}
        )
