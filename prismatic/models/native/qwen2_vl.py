"""Qwen2-VL and Qwen2.5-VL: patches of two frames, merged two by two, at positions in time, height and width."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from prismatic.models.native.parts import (
    NATIVE_FAMILIES,
    Checkpoint,
    NativeFamily,
    NativeParts,
    NativeVision,
    Rope,
    pixel_spec,
    take_module,
)
from prismatic.models.vision.base import normalise
from prismatic.types import VISUAL_SLOT, ImageSpec

DEFAULT_SIZE = 224  # pixels, unless the processor's own bounds say otherwise


class _Group(nn.Module):
    """Stands where the tower calls its merger: puts the patches of one merged token side by side, and no more."""

    def __init__(self, merge: int) -> None:
        super().__init__()
        self.merge = merge

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Features [n, Dv] to [n / merge^2, merge^2 Dv]."""
        return patches.view(-1, self.merge**2 * patches.shape[-1])


class QwenVision(NativeVision):
    """The tower without its merger. All clips of a batch, images too, go through it in one call."""

    def __init__(self, tower: nn.Module, config: Any, spec: ImageSpec) -> None:
        super().__init__()
        self.patch, self.merge = config.patch_size, config.spatial_merge_size
        self.pair = config.temporal_patch_size
        tower.merger = _Group(self.merge)
        self.tower = tower
        self.image_spec = spec
        self.side = spec.resolution // (self.patch * self.merge)

    def num_tokens(self, T: int) -> int:
        """Frames are taken in pairs; the last of an odd number, and an image, stand for two."""
        return -(-T // self.pair) * self.side**2

    def forward(self, frames: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] to features [V, merge^2 Dv] of V visual tokens."""
        clips = normalise(frames, self.image_spec).split(list(counts))
        grids = [[-(-T // self.pair), self.side * self.merge, self.side * self.merge] for T in counts]
        pixels = torch.cat([self._patches(clip) for clip in clips]).to(next(self.parameters()).dtype)
        output = self.tower(pixels, grid_thw=torch.tensor(grids, device=frames.device))
        return output.pooler_output

    def _patches(self, clip: torch.Tensor) -> torch.Tensor:
        """Frames [T, 3, R, R] to [n, 3 pair patch^2], in the official order: merged neighbours stand together."""
        odd = -len(clip) % self.pair
        clip = torch.cat([clip, clip[-1:].expand(odd, -1, -1, -1)]) if odd else clip
        grid = (-1, self.pair, 3, self.side, self.merge, self.patch, self.side, self.merge, self.patch)
        patches = clip.reshape(grid).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return patches.reshape(-1, 3 * self.pair * self.patch**2)


class QwenProjector(nn.Module):
    """The official merger, called after the tower instead of in it: it trains where the tower is frozen."""

    def __init__(self, merger: nn.Module, merge: int) -> None:
        super().__init__()
        self.merger = merger
        self.merge = merge

    def forward(self, features: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Features [V, merge^2 Dv] to visual tokens [V, D]."""
        features = features.to(next(self.parameters()).dtype)
        return self.merger(features.view(-1, features.shape[-1] // self.merge**2))


def default_size(checkpoint: Checkpoint, unit: int) -> int:
    """R: a multiple of `unit` near 224 that neither the image nor the video processor would resize."""
    processors = [checkpoint.processor.image_processor, checkpoint.processor.video_processor]
    least = max(_bounds(processor)[0] for processor in processors)
    most = min(_bounds(processor)[1] for processor in processors)
    if least > most:  # no size suits both: a video decides
        least, most = _bounds(checkpoint.processor.video_processor)
    low, high = math.ceil(math.sqrt(least) / unit), max(1, math.floor(math.sqrt(most) / unit))
    return unit * min(max(DEFAULT_SIZE // unit, low), high)


def _bounds(processor: Any) -> tuple[int, int]:
    size = dict(processor.size)
    return size["shortest_edge"], size["longest_edge"]


def _size(checkpoint: Checkpoint, unit: int) -> int:
    asked = checkpoint.image_size
    if asked is None:
        return default_size(checkpoint, unit)
    if asked < unit or asked % unit:
        near = max(1, round(asked / unit)) * unit
        raise ValueError(
            f"--model.image_size {asked} is not a multiple of {unit} (patch size x merge size of this checkpoint); "
            f"for example pass --model.image_size {near}"
        )
    for processor in (checkpoint.processor.image_processor, checkpoint.processor.video_processor):
        processor.size = {"shortest_edge": asked**2, "longest_edge": asked**2}
    return asked


def rope_positions(
    model: nn.Module, side: int, merge: int, ids: torch.Tensor, media_tokens: Sequence[int]
) -> torch.Tensor:
    """Positions int64 [3, S] of ids [S], by the official `get_rope_index`, for clips of N = media_tokens.

    Where time has a unit (Qwen2.5-VL), a pair of frames counts as one second: two frames a second is the rate at which
    the family samples by default, and frames carry no other time here.
    """
    config, slots = model.config, ids == VISUAL_SLOT
    kinds = torch.zeros_like(ids)
    kinds[slots] = torch.cat(
        [torch.full((N,), 1 if N == side**2 else 2) for N in media_tokens] or [kinds.new_zeros(0)]
    ).to(kinds)
    tokens = torch.where(kinds == 1, config.image_token_id, config.video_token_id)
    grids = {kind: [N // side**2 for N in media_tokens if (N == side**2) == (kind == 1)] for kind in (1, 2)}
    thw = {
        kind: torch.tensor([[t, side * merge, side * merge] for t in times]) if times else None
        for kind, times in grids.items()
    }
    asked: dict[str, Any] = {
        "image_grid_thw": thw[1],
        "video_grid_thw": thw[2],
        "mm_token_type_ids": kinds[None].int(),
    }
    known = inspect.signature(model.get_rope_index).parameters
    if "second_per_grid_ts" in known and grids[2]:
        asked["second_per_grid_ts"] = torch.ones(len(grids[2]))
    positions, _ = model.get_rope_index(torch.where(slots, tokens, ids)[None], **asked)
    return positions[:, 0]


def take(checkpoint: Checkpoint) -> NativeParts:
    """Tower and merger of a Qwen2-VL or Qwen2.5-VL model."""
    model, config = checkpoint.model.model, checkpoint.config.vision_config
    merge = config.spatial_merge_size
    R = _size(checkpoint, config.patch_size * merge)
    tower = take_module(model, "visual")
    merger = take_module(tower, "merger")
    vision = QwenVision(tower, config, pixel_spec(checkpoint.processor.image_processor, R))
    rope = Rope(partial(rope_positions, model, vision.side, merge))
    return NativeParts(vision, QwenProjector(merger, merge), rope)


_QWEN = {
    "take": take,
    "resize": "resize-naive",
    "template": "qwen-2",
    "medium": "<|vision_start|>{slots}<|vision_end|>",
    "has_video": True,
}
NATIVE_FAMILIES.add("qwen2_vl", NativeFamily("Qwen2VLForConditionalGeneration", **_QWEN))
NATIVE_FAMILIES.add("qwen2_5_vl", NativeFamily("Qwen2_5_VLForConditionalGeneration", **_QWEN))
