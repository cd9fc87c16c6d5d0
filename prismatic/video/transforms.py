"""Frames to the square uint8 input of a vision backbone. Normalising is the backbone's own work, on its device.

Every strategy does the pixel work of timm's and torchvision's transforms on Pillow images, and through Pillow, so it is
equal bit for bit: 1.5 ms a frame (bicubic, letterbox) from 596 x 336 to 224 on one core. Torch's antialiased uint8
kernel takes a ninth of that, but strays by 2/255 on a few pixels in a million (it rounds its weights to 16 bits). In
fp32, torch's kernel or a product with banded matrices takes 0.8 to 1.0 ms, which is no gain worth other pixels.
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
    """Frames uint8 [T, H, W, 3] to uint8 [T, 3, R, R] by a strategy of RESIZES.

    In memory the colours of a pixel stay together ([T, R, R, 3]): planes are made on the device, with the normalising.
    Frames that need no scaling share their memory with the result. Raises ValueError for frames of another type or
    shape, an unknown strategy or interpolation.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] and not empty, got {frames.dtype} {list(frames.shape)}")
    if spec.interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got '{spec.interpolation}'")
    return RESIZES.get(strategy)(frames, spec)


@RESIZES.register("resize-naive")
def resize_naive(frames: np.ndarray, spec: ImageSpec) -> torch.Tensor:
    """Squeeze the whole picture into the square; proportions are lost."""
    return _fitted(frames, (spec.resolution, spec.resolution), spec)


@RESIZES.register("resize-crop")
def resize_crop(frames: np.ndarray, spec: ImageSpec) -> torch.Tensor:
    """Scale the shorter side to floor(R / crop_pct), then cut the square out of the middle, as timm evaluates."""
    return _fitted(frames, _scaled_size(*frames.shape[1:3], spec), spec)


@RESIZES.register("letterbox")
def letterbox(frames: np.ndarray, spec: ImageSpec) -> torch.Tensor:
    """Pad to a square with the backbone's mean colour, int(255 * mean), then do as `resize-crop`.

    Half of the difference, cut off, goes on each side: an odd difference leaves the picture one pixel short of square.
    The published checkpoints were trained so.
    """
    height, width = frames.shape[1:3]
    down, across = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    return _fitted(frames, _scaled_size(height + 2 * down, width + 2 * across, spec), spec, (down, across))


def _scaled_size(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """(height, width) with the shorter side at floor(R / crop_pct)."""
    short = math.floor(spec.resolution / spec.crop_pct)
    # The longer side is cut off to whole pixels, as torchvision's Resize does with a single number.
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def _fitted(
    frames: np.ndarray, size: tuple[int, int], spec: ImageSpec, margins: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Frames with margins of the mean colour above and below, left and right, scaled to `size` (height, width),
    antialiased where that is smaller (but for "nearest"), and of that the square in the middle: uint8 [T, 3, R, R].
    """
    side = spec.resolution
    if frames.shape[1:3] == size == (side, side):
        return torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)
    fitted = np.empty((len(frames), side, side, 3), np.uint8)
    for source, target in zip(frames, fitted, strict=True):
        target[:] = np.asarray(_fit(Image.fromarray(source), size, spec, margins))
    return torch.from_numpy(fitted).permute(0, 3, 1, 2)


def _fit(image: Image.Image, size: tuple[int, int], spec: ImageSpec, margins: tuple[int, int]) -> Image.Image:
    (height, width), (down, across), side = size, margins, spec.resolution
    kernel = INTERPOLATIONS[spec.interpolation]
    if down and spec.interpolation != "nearest":
        # Pillow scales a square across first, into whole levels, then down. Rows of one colour need no scaling across,
        # so they may as well come between the two: half of the work, and the same bits.
        image = image.resize((width, image.height), kernel)
    if down or across:
        red, green, blue = (int(255 * mean) for mean in spec.mean)
        canvas = Image.new("RGB", (image.width + 2 * across, image.height + 2 * down), (red, green, blue))
        canvas.paste(image, (across, down))
        image = canvas
    image = image.resize((width, height), kernel)
    if (height, width) == (side, side):
        return image
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return image.crop((left, top, left + side, top + side))
