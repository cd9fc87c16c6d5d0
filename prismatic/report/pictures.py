"""Frames as small JPEGs inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A frame: JPEG as a data URI, and its place in time (seconds, as text; empty where it has none)."""

    uri: str
    when: str


def thumbnail(frame: NDArray[np.uint8], side: int) -> Image.Image:
    """A frame uint8 [H, W, 3] whose longest side is at most `side` pixels."""
    image = Image.fromarray(frame)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image, quality: int) -> str:
    """A picture as the address of an <img>."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
