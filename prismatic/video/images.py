"""Still pictures: one image file as a clip of one frame's pixels."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from prismatic.video.clip import MediaError, check_size
from prismatic.video.storage import is_url, read_bytes

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"})
"""Extensions that count as frames in a folder. Any file that Pillow reads can be opened by its own path."""
PICTURE_EXTENSIONS = IMAGE_EXTENSIONS | {".gif", ".tif", ".tiff"}
"""Extensions of a path that names one picture."""

DECODER = "image"

_PPM = re.compile(rb"P6\s(\d{1,9})\s(\d{1,9})\s255\s")

# What Pillow raises on junk besides its own errors, which are OSErrors; found by fuzzing PNG, JPEG, GIF, TIFF and WebP.
_BAD_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)


def read_image(path: str | os.PathLike[str], data: bytes | None = None) -> np.ndarray:
    """One picture as uint8 [1, H, W, 3] RGB: a clip of one frame. path: a file, or a URL that fsspec understands.

    EXIF orientation is applied; transparency is dropped, as the published checkpoints were trained; of an animation the
    first picture is taken; 16-bit grey is scaled to 8. data: the file's bytes, where `path` is only a name for them.
    Raises MediaError for a file that is missing, no image, damaged, or larger than MAX_PIXELS.
    """
    if data is None and os.fspath(path).endswith(".ppm"):
        with suppress(OSError):  # which is told below
            data = read_bytes(path)
    if data is not None and (pixels := _bare_pixels(path, data)) is not None:
        return pixels
    with _opened(path, data) as image:
        ImageOps.exif_transpose(image, in_place=True)  # otherwise an upright picture is copied, too
        return np.asarray(_to_rgb(image))[None]


def _bare_pixels(path: str | os.PathLike[str], data: bytes) -> np.ndarray | None:
    """uint8 [1, H, W, 3], not a copy, of a PPM as every program writes it; None for what Pillow is needed for."""
    head = _PPM.match(data)
    if head is None:
        return None
    width, height = map(int, head.groups())
    check_size(path, DECODER, width, height)
    if len(data) < head.end() + height * width * 3:
        return None
    return np.frombuffer(data, np.uint8, height * width * 3, head.end()).reshape(1, height, width, 3)


@contextmanager
def _opened(path: str | os.PathLike[str], data: bytes | None) -> Iterator[Image.Image]:
    if data is None and is_url(path):
        data = read_bytes(path)
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            check_size(path, DECODER, *image.size)
            yield image
    except MediaError:
        raise
    except _BAD_IMAGE as error:
        raise _unreadable(path, error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips at 255 here, which turns a 16-bit picture white.
        grey = np.asarray(image, dtype=np.float64)
        scale = 257.0 if image.mode != "F" and grey.max(initial=0) > 255 else 1.0
        return Image.fromarray(np.clip(grey / scale, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> MediaError:
    if isinstance(error, FileNotFoundError):
        return MediaError(path, DECODER, "no such file")
    if isinstance(error, IsADirectoryError):
        return MediaError(path, DECODER, "is a folder, not an image")
    if isinstance(error, PermissionError):
        return MediaError(path, DECODER, "no permission to read it")
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return MediaError(path, DECODER, "the file is empty")
    return MediaError(path, DECODER, f"cannot be read as an image ({type(error).__name__}: {error})")
