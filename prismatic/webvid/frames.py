"""One video to encoded pictures: what a process of `extract` does."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prismatic.types import ImageSpec
from prismatic.video.decode import open_video
from prismatic.video.sampling import ClipFacts, sample

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "ppm": ".ppm"}
PNG_LEVEL = 3  # of 9: half the time of Pillow's 6, and 5 % more bytes


@dataclass(frozen=True)
class FrameSpec:
    """Which frames are taken, and how they are stored. short_side: pixels, None for the video's own size. square,
    resize_strategy: frames are made a vision backbone's input (`square_of`).
    """

    num_frames: int
    sampler: str = "uniform"
    image_format: str = "png"
    quality: int = 95
    short_side: int | None = None
    seed: int = 7
    square: ImageSpec | None = None
    resize_strategy: str | None = None

    @property
    def suffix(self) -> str:
        """Of a picture's name."""
        return SUFFIXES[self.image_format]


@dataclass(frozen=True)
class Pictures:
    """Encoded frames of one video in order of time. manifest: indices, num_frames, fps of `manifest.json`."""

    data: tuple[bytes, ...]
    manifest: dict[str, Any]


def take_frames(path: Path, spec: FrameSpec) -> Pictures:
    """Decode and encode. Raises MediaError (a ValueError) when the video cannot give its frames."""
    with open_video(path) as clip:
        facts = ClipFacts.of(clip)
        rng = np.random.default_rng(spec.seed)
        indices = sample(facts, spec.num_frames, spec.sampler, rng, short="fewer")
        frames = clip.get(indices)
        if spec.square is not None and spec.resize_strategy is not None:
            from prismatic.video.transforms import resize  # not above: it needs torch, and extracting does not

            frames = resize(frames, spec.square, spec.resize_strategy).permute(0, 2, 3, 1).numpy()
        manifest = {"indices": indices.tolist(), "num_frames": len(clip), "fps": clip.fps}
    return Pictures(tuple(encode(frame, spec) for frame in frames), manifest)


def encode(frame: np.ndarray, spec: FrameSpec) -> bytes:
    """A frame uint8 [H, W, 3] as a PNG or JPEG file; equal frames give equal bytes."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    shorter = min(image.size)
    if spec.short_side is not None and shorter > spec.short_side:
        scale = spec.short_side / shorter
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if spec.image_format == "png":
        image.save(file, "PNG", compress_level=PNG_LEVEL)
    elif spec.image_format == "ppm":
        image.save(file, "PPM")
    else:
        image.save(file, "JPEG", quality=spec.quality)
    return file.getvalue()


def image_spec(vision_id: str) -> ImageSpec:
    """How frames must be prepared for a vision backbone, without making its weights."""
    import torch

    from prismatic.models.vision.zoo import build_vision

    try:
        with torch.device("meta"):
            return build_vision(vision_id, pretrained=False).image_spec
    except ValueError as error:
        raise ValueError(str(error).replace("--model.", "--")) from error


def square_of(vision_id: str, strategy: str) -> ImageSpec:
    """How frames are stored so that the backbone's own preparation finds nothing left to scale, and gives the pixels it
    gives of the video (exactly, but for JPEG's losses). Raises ValueError where no stored square can do that.
    """
    from prismatic.video.transforms import RESIZES

    RESIZES.get(strategy)
    spec = image_spec(vision_id)
    if strategy == "resize-naive" or spec.crop_pct == 1.0:
        return spec
    if strategy != "letterbox":
        raise ValueError(
            f"--image_resize_strategy {strategy} with {vision_id} scales to more than it keeps and crops then, which "
            "frames stored square would be once more; use --short_side PIXELS instead of --vision_backbone_id"
        )
    # Stored before the crop, which takes the same middle from it later.
    return replace(spec, resolution=math.floor(spec.resolution / spec.crop_pct), crop_pct=1.0)
