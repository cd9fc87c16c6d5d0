"""LLaVA, FastVLM and Video-LLaVA: the patches of each frame through an MLP, frame after frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prismatic.models.native.parts import (
    NATIVE_FAMILIES,
    Checkpoint,
    NativeFamily,
    NativeParts,
    NativeVision,
    fixed_size,
    hidden_states,
    pixel_spec,
    plain_tower,
    take_module,
)
from prismatic.models.vision.base import normalise
from prismatic.types import ImageSpec


class LlavaVision(NativeVision):
    """A CLIP or SigLIP tower; each frame of a clip is an image."""

    def __init__(self, tower: nn.Module, spec: ImageSpec, config: Any) -> None:
        super().__init__()
        side, front = plain_tower(config)
        self.tower, self.image_spec = tower, spec
        self.layer = config.vision_feature_layer
        # The official code cuts the first token whatever the tower puts there.
        self.skip = 1 if config.vision_feature_select_strategy == "default" else 0
        self.tokens = side**2 + front - self.skip

    def num_tokens(self, T: int) -> int:
        """The patches of every frame."""
        return T * self.tokens

    def forward(self, frames: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] to features [V, Dv]."""
        return hidden_states(self.tower, normalise(frames, self.image_spec), self.layer, self.skip).flatten(0, 1)


class FastVision(NativeVision):
    """FastViT-HD: one feature map a frame, no layer to choose."""

    def __init__(self, tower: nn.Module, spec: ImageSpec, stride: int) -> None:
        super().__init__()
        self.tower, self.image_spec = tower, spec
        self.tokens = (spec.resolution // stride) ** 2

    def num_tokens(self, T: int) -> int:
        """The cells of every frame's map."""
        return T * self.tokens

    def forward(self, frames: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] to features [V, Dv]."""
        pixels = normalise(frames, self.image_spec).to(next(self.parameters()).dtype)
        maps = self.tower(pixels, return_dict=True).last_hidden_state  # [F, Dv, h, w]
        return maps.flatten(2).transpose(1, 2).flatten(0, 1)


class VideoLlavaVision(NativeVision):
    """Two towers: one for images, one for the frames of videos. A video keeps the CLS token of each frame."""

    def __init__(self, image: nn.Module, video: nn.Module, spec: ImageSpec, config: Any) -> None:
        super().__init__()
        side, front = plain_tower(config)
        self.image_tower, self.video_tower, self.image_spec = image, video, spec
        self.layer = config.vision_feature_layer
        self.skip = 1 if config.vision_feature_select_strategy == "default" else 0
        self.tokens = side**2 + front

    def num_tokens(self, T: int) -> int:
        """Patches and CLS of every frame; the CLS of an image is cut where the configuration says so."""
        return T * self.tokens if T > 1 else self.tokens - self.skip

    def forward(self, frames: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] to features [V, Dv]."""
        clips = normalise(frames, self.image_spec).split(list(counts))
        images, videos = [c for c in clips if len(c) == 1], [c for c in clips if len(c) > 1]
        spare = [clips[0][:1]]
        made = iter(self._features(self.image_tower, images or spare, self.skip))
        films = iter(self._features(self.video_tower, videos or spare, 0))
        features = torch.cat([next(made) if len(c) == 1 else next(films) for c in clips])
        if not (images and videos) and torch.is_grad_enabled():
            # Every process needs gradients of the same weights: a batch without images (or videos) adds 0 times one.
            features = features + 0.0 * next(films if images else made).sum()
        return features

    def _features(self, tower: nn.Module, clips: list[torch.Tensor], skip: int) -> list[torch.Tensor]:
        features = hidden_states(tower, torch.cat(clips), self.layer, skip)
        return [clip.flatten(0, 1) for clip in features.split([len(clip) for clip in clips])]


class LlavaProjector(nn.Module):
    """The official MLP, on all visual tokens alike."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, features: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Features [V, Dv] to visual tokens [V, D]."""
        return self.mlp(features.to(next(self.parameters()).dtype))


def _projector(model: nn.Module) -> LlavaProjector:
    return LlavaProjector(take_module(model, "multi_modal_projector"))


def take_llava(checkpoint: Checkpoint) -> NativeParts:
    """Tower and MLP of a LLaVA model."""
    model, config = checkpoint.model.model, checkpoint.config
    plain_tower(config)
    R = fixed_size(checkpoint, config.vision_config.image_size)
    spec = pixel_spec(checkpoint.processor.image_processor, R)
    return NativeParts(LlavaVision(take_module(model, "vision_tower"), spec, config), _projector(model))


def take_fast(checkpoint: Checkpoint) -> NativeParts:
    """Tower and MLP of a FastVLM model; the processor knows the size and the stride of the tower."""
    model, images = checkpoint.model.model, checkpoint.processor.image_processor
    size = dict(getattr(images, "crop_size", None) or images.size)
    R, stride = checkpoint.image_size or size.get("height") or size["shortest_edge"], checkpoint.processor.patch_size
    if R % stride:
        raise ValueError(f"--model.image_size {R} is not a multiple of {stride}, the stride of the vision tower")
    if checkpoint.image_size:  # the tower is convolutional and takes any size; the processor must say the same
        images.size = {"shortest_edge": R} if "shortest_edge" in dict(images.size) else {"height": R, "width": R}
        images.crop_size = {"height": R, "width": R}
    vision = FastVision(take_module(model, "vision_tower"), pixel_spec(images, R), stride)
    return NativeParts(vision, _projector(model))


def take_video_llava(checkpoint: Checkpoint) -> NativeParts:
    """Both towers and the MLP of a Video-LLaVA model."""
    model, config = checkpoint.model.model, checkpoint.config
    R = fixed_size(checkpoint, config.vision_config.image_size)
    towers = (take_module(model, "image_tower"), take_module(model, "video_tower"))
    vision = VideoLlavaVision(*towers, pixel_spec(checkpoint.processor.image_processor, R), config)
    return NativeParts(vision, _projector(model))


NATIVE_FAMILIES.add("llava", NativeFamily("LlavaForConditionalGeneration", take_llava, "resize-crop"))
NATIVE_FAMILIES.add(
    "fast_vlm", NativeFamily("FastVlmForConditionalGeneration", take_fast, "letterbox", template="qwen-2")
)
NATIVE_FAMILIES.add(
    "video_llava",
    NativeFamily("VideoLlavaForConditionalGeneration", take_video_llava, "resize-crop", has_video=True),
)
