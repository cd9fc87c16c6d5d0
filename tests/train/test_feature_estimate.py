"""What is said of a feature cache before it is filled, beside what it then takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prismatic.data.feature_cache import FeatureCache
from prismatic.data.feature_cache_reader import CachedReader
from prismatic.data.feature_cache_size import amount
from prismatic.data.media import MediaReader
from prismatic.train.feature_estimate import estimate
from prismatic.types import ImageSpec, Medium

PATCHES, WIDTH = 4, 16


class Tower(nn.Module):
    """Frames uint8 [F, 3, 8, 8] to features [F, 4, 16]."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.float().mean(dim=(1, 2, 3))[:, None, None].expand(-1, PATCHES, WIDTH)


@pytest.fixture
def reader(tmp_path: Path) -> CachedReader:
    cache = FeatureCache(tmp_path / "cache", "bfloat16")
    cache.bind({"encoder": "e"})
    return CachedReader(MediaReader(num_frames=8, image_spec=ImageSpec(resolution=8)), cache)


@pytest.fixture
def media(tmp_path: Path) -> list[Medium]:
    """Nine images, then three lists of eight frames each; no two are the same."""
    paths = []
    for i in range(9 + 3 * 8):
        paths.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(paths[-1])
    return [
        *(Medium("image", (path,)) for path in paths[:9]),
        *(Medium("frames", tuple(paths[9 + 8 * i : 17 + 8 * i])) for i in range(3)),
    ]


def _estimate(reader: CachedReader, media: list[Medium], total: int | None = None) -> str:
    return "\n".join(estimate(reader, Tower(), media, torch.device("cpu"), total=total or len(media), epochs=4))


def test_the_size_told_is_the_size_taken_of_images_and_clips_mixed(reader: CachedReader, media: list[Medium]) -> None:
    text = _estimate(reader, media)
    for medium in media:
        clip = reader.clip(medium)
        assert clip.frames is not None
        reader.cache.put(clip.key, Tower()(clip.frames).to(torch.bfloat16).contiguous())
    taken, count = reader.cache.size.usage()
    assert count == 12 and taken > 9 * PATCHES * WIDTH * 2 + 24 * PATCHES * WIDTH * 2
    assert f"12 clips of 2.75 frames = {amount(taken)}" in text


def test_of_a_part_of_the_clips_the_size_of_all_is_told(reader: CachedReader, media: list[Medium]) -> None:
    assert f"up to 120 clips of 2.75 frames = {amount(10 * _taken(reader, media))}" in _estimate(reader, media, 120)


def test_rows_without_clips(reader: CachedReader) -> None:
    lines = _estimate(reader, []).splitlines()
    assert len(lines) == 1 and lines[0].endswith("these rows have no clips to keep")


def test_what_a_full_cache_cannot_hold_saves_nothing(reader: CachedReader, media: list[Medium]) -> None:
    reader.cache.limit = reader.cache.size.limit = _taken(reader, media) // 2
    text = _estimate(reader, media)
    assert "has room for 6 clips more" in text and "less an epoch with 6 clips in it" in text
    reader.cache.limit = reader.cache.size.limit = 1
    assert "0 ms less an epoch with 0 clips in it" in _estimate(reader, media)


def test_clips_of_all_lengths_are_timed(
    reader: CachedReader, media: list[Medium], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(Tower, "forward", _noting(Tower.forward, lengths))
    _estimate(reader, media)
    assert sorted(set(lengths)) == [1, 8] and lengths.count(8) == 1  # A quarter of the clips are long


def _taken(reader: CachedReader, media: list[Medium]) -> int:
    from prismatic.data.feature_cache_entry import entry_bytes

    return sum(entry_bytes((reader.read.count(medium), PATCHES, WIDTH), torch.bfloat16) for medium in media)


def _noting(forward, lengths: list[int]):
    def noting(self: Tower, frames: torch.Tensor) -> torch.Tensor:
        lengths.append(len(frames))
        return forward(self, frames)

    return noting
