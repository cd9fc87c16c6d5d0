"""LLaVA-OneVision: an image in tiles with a token at the end of each line, a video in pooled frames and one token."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from prismatic.models.native.parts import (
    NATIVE_FAMILIES,
    Checkpoint,
    NativeFamily,
    NativeParts,
    NativeVision,
    hidden_states,
    pixel_spec,
    plain_tower,
    take_module,
    take_parameter,
)
from prismatic.types import ImageSpec


class OnevisionVision(NativeVision):
    """The tower behind the official processors, which cut an image into tiles and scale a video to the tower's size.

    Every image is taken as the only one of its example: whole, and in tiles.
    """

    def __init__(self, tower: nn.Module, checkpoint: Checkpoint, spec: ImageSpec, tokens: dict[str, int]) -> None:
        super().__init__()
        self.tower, self.image_spec = tower, spec
        self._images = checkpoint.processor.image_processor
        self._videos = checkpoint.processor.video_processor
        self.layer = checkpoint.config.vision_feature_layer
        self.skip = 1 if checkpoint.config.vision_feature_select_strategy == "default" else 0
        self.image_tokens, self.frame_tokens = tokens["image"], tokens["frame"]

    def num_tokens(self, T: int) -> int:
        """The pooled frames of a video and a token that ends it."""
        return T * self.frame_tokens + 1 if T > 1 else self.image_tokens

    def forward(self, frames: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] to features [tiles and frames, P, Dv], clip after clip."""
        pixels = [self._pixels(clip) for clip in frames.split(list(counts))]
        return hidden_states(self.tower, torch.cat(pixels).to(frames.device), self.layer, self.skip)

    def _pixels(self, clip: torch.Tensor) -> torch.Tensor:
        if len(clip) == 1:
            return self._images(images=[clip[0]], return_tensors="pt")["pixel_values"][0]
        return self._videos(videos=[clip], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][0]


class OnevisionProjector(nn.Module):
    """The official MLP, and the official arrangement of what comes out of it, with its learned end-of-line token."""

    def __init__(self, mlp: nn.Module, newline: nn.Parameter, config: Any, R: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.image_newline = newline
        self._config, self._size = config, R
        self.tiles = _num_tiles(config, R)

    def forward(self, features: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Features [tiles and frames, P, Dv] to visual tokens [V, D]."""
        projected = self.mlp(features.to(next(self.parameters()).dtype))
        parts = projected.split([self.tiles if T == 1 else T for T in counts])
        return torch.cat([self._image(p) if T == 1 else self._video(p) for T, p in zip(counts, parts, strict=True)])

    def _image(self, tiles: torch.Tensor) -> torch.Tensor:
        return pack_image(tiles, self.image_newline, self._config, self._size)

    def _video(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.cat([pool(frames, self._config).flatten(0, 1), self.image_newline[None].to(frames.dtype)])


def _official(config: Any) -> tuple[Any, Any]:
    # These methods of the official model read its configuration and nothing else.
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    return LlavaOnevisionModel, SimpleNamespace(config=config)


def pack_image(tiles: torch.Tensor, newline: torch.Tensor, config: Any, R: int) -> torch.Tensor:
    """Tokens [tiles, P, D] of an image of R x R pixels in their official order and number, [N, D]."""
    model, holder = _official(config)
    packed, _ = model.pack_image_features(
        holder, [tiles], [[R, R]], image_newline=newline, vision_aspect_ratio=config.vision_aspect_ratio
    )
    return packed[0]


def pool(frames: torch.Tensor, config: Any) -> torch.Tensor:
    """Tokens [T, P, D] of a video at half the side, [T, P', D]."""
    model, holder = _official(config)
    return model.apply_pooling(holder, frames)


def _num_tiles(config: Any, R: int) -> int:
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    return image_size_to_num_patches([R, R], config.image_grid_pinpoints, config.vision_config.image_size)


def take(checkpoint: Checkpoint) -> NativeParts:
    """Tower, MLP and end-of-line token of a LLaVA-OneVision model."""
    model, config = checkpoint.model.model, checkpoint.config
    side, front = plain_tower(config)
    R = checkpoint.image_size or config.vision_config.image_size
    patches = side**2 + front - (config.vision_feature_select_strategy == "default")
    newline = take_parameter(model, "image_newline")
    projector = OnevisionProjector(take_module(model, "multi_modal_projector"), newline, config, R)
    # Counted by the official code itself, on tokens of width 1.
    with torch.device("cpu"):
        image = pack_image(torch.zeros(projector.tiles, patches, 1), torch.zeros(1), config, R)
        frame = pool(torch.zeros(1, patches, 1), config)
    tokens = {"image": len(image), "frame": frame.shape[1]}
    spec = pixel_spec(checkpoint.processor.image_processor, R)
    return NativeParts(OnevisionVision(take_module(model, "vision_tower"), checkpoint, spec, tokens), projector)


NATIVE_FAMILIES.add(
    "llava_onevision",
    NativeFamily(
        "LlavaOnevisionForConditionalGeneration",
        take,
        "resize-naive",
        template="qwen-2",
        medium="{slots}\n",
        has_video=True,
    ),
)
