"""Frames to the square uint8 input of a vision backbone. Normalising is the backbone's own work, on its device.

Every strategy does the pixel work of timm's and torchvision's transforms on Pillow images, and through Pillow, so it is
equal bit for bit: 0.95 ms (bilinear) or 1.5 ms (bicubic) a frame from 640 x 360 to 224 on one core. Torch's antialiased
uint8 kernel takes a ninth of that, but strays by 2/255 on a few pixels in a million with either filter (it rounds its
weights to 16 bits), and decoding the frame takes longer than both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from prismatic.registry import Registry
from prismatic.types import ImageSpec
from prismatic.video.augment import AUGMENTATIONS, augment

__all__ = ["AUGMENTATIONS", "INTERPOLATIONS", "RESIZES", "augment", "resize"]

Resize = Callable[[np.ndarray, ImageSpec], torch.Tensor]

RESIZES: Registry[Resize] = Registry("resize strategy", flag="--model.image_resize_strategy")
"""Id -> (frames uint8 [T, H, W, 3], spec) -> uint8 [T, 3, R, R]."""

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
"""Values that ImageSpec.interpolation may have, with Pillow's filters."""


def resize(frames: np.ndarray, spec: ImageSpec, strategy: str) -> torch.Tensor:
    """Frames uint8 [T, H, W, 3] to uint8 [T, 3, R, R], contiguous, by a strategy of RESIZES.

    Raises ValueError for frames of another type or shape, an unknown strategy or interpolation.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] and not empty, got {frames.dtype} {list(frames.shape)}")
    if spec.interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got '{spec.interpolation}'")
    return RESIZES.get(strategy)(frames, spec).contiguous()


@RESIZES.register("resize-naive")
def resize_naive(frames: np.ndarray, spec: ImageSpec) -> torch.Tensor:
    """Squeeze the whole picture into the square; proportions are lost."""
    return _scale(frames, spec.resolution, spec.resolution, spec.interpolation)


@RESIZES.register("resize-crop")
def resize_crop(frames: np.ndarray, spec: ImageSpec) -> torch.Tensor:
    """Scale the shorter side to floor(R / crop_pct), then cut the square out of the middle, as timm evaluates."""
    size = _scaled_size(*frames.shape[1:3], spec)
    return _middle(_scale(frames, *size, spec.interpolation), spec.resolution)


@RESIZES.register("letterbox")
def letterbox(frames: np.ndarray, spec: ImageSpec) -> torch.Tensor:
    """Pad to a square with the backbone's mean colour, int(255 * mean), then do as `resize-crop`.

    Half of the difference, cut off, goes on each side: an odd difference leaves the picture one pixel short of square.
    The published checkpoints were trained so.
    """
    height, width = frames.shape[1:3]
    down, across = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    if not down and not across:
        return resize_crop(frames, spec)
    size = _scaled_size(height + 2 * down, width + 2 * across, spec)
    if down and spec.interpolation != "nearest":
        # Pillow scales across first, into whole levels, then down. Rows of one colour need no scaling across, so they
        # may as well come between the two: half of the work, and the same bits.
        frames, width = _scaled(frames, height, size[1], spec.interpolation), size[1]
    padded = np.empty((len(frames), height + 2 * down, width + 2 * across, 3), np.uint8)
    padded[:] = [int(255 * mean) for mean in spec.mean]
    padded[:, down : down + height, across : across + width] = frames
    return _middle(_scale(padded, *size, spec.interpolation), spec.resolution)


def _scaled_size(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """(height, width) with the shorter side at floor(R / crop_pct)."""
    short = math.floor(spec.resolution / spec.crop_pct)
    # The longer side is cut off to whole pixels, as torchvision's Resize does with a single number.
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def _middle(frames: torch.Tensor, side: int) -> torch.Tensor:
    """The square in the middle of frames [T, 3, H, W]."""
    top, left = round((frames.shape[2] - side) / 2.0), round((frames.shape[3] - side) / 2.0)
    return frames[:, :, top : top + side, left : left + side]


def _scale(frames: np.ndarray, height: int, width: int, interpolation: str) -> torch.Tensor:
    """uint8 [T, 3, height, width], antialiased when it gets smaller (but for "nearest")."""
    if frames.shape[1:3] == (height, width):
        return torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)
    return torch.from_numpy(_scaled(frames, height, width, interpolation)).permute(0, 3, 1, 2)


def _scaled(frames: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """uint8 [T, height, width, 3]."""
    scaled = np.empty((len(frames), height, width, 3), np.uint8)
    for source, target in zip(frames, scaled, strict=True):
        target[:] = np.asarray(Image.fromarray(source).resize((width, height), INTERPOLATIONS[interpolation]))
    return scaled
