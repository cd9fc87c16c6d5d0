"""What every vision backbone has in common: uint8 frames in, patch features out, normalisation in between.

Owns the normalisation of pixels. Resizing belongs to prismatic/video, the choice of a backbone to zoo.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import torch
from torch import nn

from prismatic.types import ImageSpec


class VisionBackbone(Protocol):
    """The members that the rest of the house uses of a vision backbone (an nn.Module).

    image_spec: how frames must be prepared. num_patches: P, features of one frame. embed_dim: Dv.
    """

    image_spec: ImageSpec
    num_patches: int
    embed_dim: int

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] to features [F, P, Dv] in the module's dtype."""
        ...

    def used_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that the features depend on."""
        ...


class VisionSpec(Protocol):
    """An entry of the registry of vision backbones."""

    def build(self, *, pretrained: bool, seed: int) -> nn.Module:
        """The backbone, with downloaded weights or with random ones that depend on `seed` only."""
        ...


@lru_cache(maxsize=32)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    std_t = torch.tensor(std, dtype=torch.float64)
    scale, shift = 1.0 / (255.0 * std_t), -torch.tensor(mean, dtype=torch.float64) / std_t
    return scale.float().view(1, -1, 1, 1).to(device), shift.float().view(1, -1, 1, 1).to(device)


def normalise(frames: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Frames uint8 [F, 3, R, R] to fp32 [F, 3, R, R]: (x / 255 - mean) / std per channel.

    The arithmetic stays in fp32 whatever the model's dtype: bf16 cannot hold 256 levels around the mean. Raises
    ValueError for another dtype or shape.
    """
    R = spec.resolution
    if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != (3, R, R):
        raise ValueError(f"frames must be uint8 [F, 3, {R}, {R}], got {frames.dtype} {list(frames.shape)}")
    scale, shift = _scale_and_shift(spec.mean, spec.std, frames.device)
    # Pixels may come row by row with their three colours together: the planes of the result are apart, always.
    floats = frames.to(torch.float32, memory_format=torch.contiguous_format)
    return torch.addcmul(shift, floats, scale)
