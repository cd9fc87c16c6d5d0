"""Still pictures of every mode come out as RGB; bad ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismatic.video import clip as clip_module
from prismatic.video.decode import MediaError, open_frames, read_image


def gradient() -> np.ndarray:
    """uint8 [40, 60, 3]: red grows to the right, green downwards."""
    down, across = np.indices((40, 60)) * 4
    return np.stack([across, down, np.full_like(down, 90)], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_any_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tif"
    image = Image.fromarray(gradient()).convert(mode)
    if mode == "HSV":
        path = tmp_path / "image.png"
        image = image.convert("RGB")
    image.save(path)
    pixels = read_image(path)
    assert (pixels.shape, pixels.dtype) == ((1, 40, 60, 3), np.uint8)
    assert np.array_equal(pixels[0], np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, dtype: type) -> None:
    grey = np.linspace(0, 65535 if dtype != np.float32 else 255, 256).reshape(16, 16).astype(dtype)
    Image.fromarray(grey).save(tmp_path / "deep.tif")
    pixels = read_image(tmp_path / "deep.tif")[0]
    assert np.abs(pixels[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
    assert (pixels == pixels[..., :1]).all()


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    Image.fromarray(gradient()).save(tmp_path / "photo.png", exif=exif)
    with open_frames([tmp_path / "photo.png"]) as photo:
        assert (photo.width, photo.height) == (40, 60)
    assert np.array_equal(read_image(tmp_path / "photo.png")[0], np.rot90(gradient(), -1))


def test_bare_pixels(tmp_path: Path) -> None:
    pixels, path = gradient(), tmp_path / "plain.ppm"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    for text in (whole, whole + b"more", whole.replace(b"P6\n", b"P6 # a remark\n"), b"P6 60\t40\n255\r" + whole[13:]):
        path.write_bytes(text)
        assert np.array_equal(read_image(path)[0], pixels)
        assert np.array_equal(read_image("in a shard", text)[0], pixels)
    shared = read_image("in a shard", whole)
    assert not shared.flags.owndata and not shared.flags.writeable
    for text in (whole[:-1], whole.replace(b"60 40", b"0 40"), whole.replace(b"60 40", b"99999 99999"), b"P6\n60"):
        path.write_bytes(text)
        with pytest.raises(MediaError, match="plain"):
            read_image(path)
    (tmp_path / "few.ppm").write_bytes(b"P6\n2 1\n3\n\0\1\2\3\0\1")
    assert read_image(tmp_path / "few.ppm")[0, 0].tolist() == [[0, 85, 170], [255, 0, 85]]


def test_transparency_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([gradient(), np.zeros((40, 60), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert np.array_equal(read_image(tmp_path / "clear.png")[0], gradient())


def test_first_picture_of_an_animation(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    pictures[0].save(tmp_path / "two.gif", save_all=True, append_images=pictures[1:])
    assert read_image(tmp_path / "two.gif")[0, 0, 0].tolist() == [250, 0, 0]


def test_bad_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(gradient()).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    reasons = {
        "gone.png": "no such file",
        "empty.png": "the file is empty",
        "text.png": "cannot be read as an image",
        "torn.png": "cannot be read as an image",
        ".": "is a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(MediaError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(clip_module, "MAX_PIXELS", 2399)
    Image.fromarray(gradient()).save(tmp_path / "large.png")
    with pytest.raises(MediaError, match=r"60 x 40 = 2400 pixels exceed the limit of 2399"):
        read_image(tmp_path / "large.png")
