"""Pixels equal those of torchvision's and timm's transforms on Pillow images, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.registry import UnknownIdError
from prismatic.types import ImageSpec
from prismatic.video.transforms import INTERPOLATIONS, RESIZES, resize

SIZES = [(360, 640), (641, 359), (96, 128), (224, 224), (225, 224), (50, 333), (17, 16), (448, 224)]


def clip(height: int, width: int, frames: int = 2) -> np.ndarray:
    """Hard edges, noise and smooth slopes: what tells one filter from another."""
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (frames, height, width, 3))
    slope = np.linspace(0, 255, width)[None, None, :, None] * np.ones((frames, height, 1, 3))
    edges = (np.indices((height, width)).sum(0) // 7 % 2 * 255)[None, :, :, None] * np.ones((frames, 1, 1, 3))
    third = np.arange(height)[None, :, None, None] * 3 // height
    return np.choose(third, [noise, slope, edges]).astype(np.uint8)


def reference(frame: np.ndarray, spec: ImageSpec, strategy: str) -> np.ndarray:
    """The same by timm's and torchvision's own transforms, uint8 [3, R, R]."""
    from timm.data import create_transform
    from torchvision import transforms as tv

    side = spec.resolution
    whole = create_transform((3, side, side), interpolation=spec.interpolation, crop_pct=spec.crop_pct)
    scale, crop = whole.transforms[:2]
    image = Image.fromarray(frame)
    if strategy == "resize-naive":
        scale = tv.Resize((side, side), interpolation=scale.interpolation)
    if strategy == "letterbox":
        width, height = image.size
        across, down = int((max(image.size) - width) / 2), int((max(image.size) - height) / 2)
        fill = tuple(int(255 * m) for m in spec.mean)
        image = tv.functional.pad(image, (across, down, across, down), fill, "constant")
    return np.asarray(crop(scale(image))).transpose(2, 0, 1)


@pytest.mark.parametrize("strategy", ["letterbox", "resize-naive", "resize-crop"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("side", "crop_pct"), [(224, 1.0), (224, 0.9), (112, 0.875)])
def test_equal_to_torchvision(strategy: str, interpolation: str, side: int, crop_pct: float) -> None:
    spec = ImageSpec(side, mean=(0.48, 0.45, 0.40), interpolation=interpolation, crop_pct=crop_pct)
    for size in SIZES:
        frames = clip(*size)
        ours = resize(frames, spec, strategy)
        assert (ours.dtype, tuple(ours.shape)) == (torch.uint8, (2, 3, side, side))
        assert ours.is_contiguous(memory_format=torch.channels_last)
        theirs = np.stack([reference(frame, spec, strategy) for frame in frames])
        assert np.array_equal(ours.numpy(), theirs), f"{size}: {np.abs(ours.numpy() - theirs.astype(int)).max()}/255"


def test_letterbox_colour_is_the_mean() -> None:
    spec = ImageSpec(64, mean=(0.5, 0.25, 1.0), interpolation="nearest")
    out = resize(np.zeros((1, 32, 64, 3), np.uint8), spec, "letterbox")
    assert out[0, :, 0, 0].tolist() == [127, 63, 255]
    assert out[0, :, 32, 32].tolist() == [0, 0, 0]


def test_frames_that_fit_are_not_copied_and_others_are_left_alone() -> None:
    for strategy in RESIZES.names():
        frames = clip(64, 64)
        assert resize(frames, ImageSpec(64), strategy).data_ptr() == frames.ctypes.data, strategy
        frames, kept = clip(64, 65), clip(64, 65)
        resize(frames, ImageSpec(64), strategy).zero_()
        assert np.array_equal(frames, kept), strategy


def test_flipped_views_are_taken() -> None:
    frames = clip(40, 60)[:, :, ::-1]
    for strategy in RESIZES.names():
        for interpolation in INTERPOLATIONS:
            spec = ImageSpec(32, interpolation=interpolation)
            assert torch.equal(resize(frames, spec, strategy), resize(frames.copy(), spec, strategy))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[T, H, W, 3\].*float32 \[1, 4, 4, 3\]"):
        resize(np.zeros((1, 4, 4, 3), np.float32), ImageSpec(8), "letterbox")
    with pytest.raises(ValueError, match="not empty"):
        resize(np.zeros((0, 4, 4, 3), np.uint8), ImageSpec(8), "letterbox")
    with pytest.raises(ValueError, match="bicubic, bilinear, nearest, got 'lanczos'"):
        resize(clip(8, 8), ImageSpec(8, interpolation="lanczos"), "letterbox")
    with pytest.raises(UnknownIdError, match=r"--model\.image_resize_strategy; did you mean 'letterbox'"):
        resize(clip(8, 8), ImageSpec(8), "leterbox")
