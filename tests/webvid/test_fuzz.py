"""Damaged videos of every sort: no crash of this process and no hang, and what opens gives frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prismatic.webvid.frames import FrameSpec, Pictures
from prismatic.webvid.pool import Failure, Pool
from prismatic.webvid.tar_shards import ShardJob
from tests.video import files


def _fuzzed(source: bytes, rng: np.random.Generator) -> bytes:
    """A copy with some bytes changed, a stretch cut out, doubled, or zeroed."""
    data = bytearray(source)
    for _ in range(int(rng.integers(1, 6))):
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
        match int(rng.integers(5)):
            case 0:
                data[at : at + length] = rng.integers(0, 256, len(data[at : at + length]), np.uint8).tobytes()
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case 4:
                data[at] ^= 1 << int(rng.integers(8))
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_fuzzed_videos(count: int, tmp_path: Path) -> None:
    source = files.write_video(tmp_path / "source.mp4", "libx264", 20, options=files.X264).read_bytes()
    rng = np.random.default_rng(5)
    for i in range(count):
        (tmp_path / f"{i}.mp4").write_bytes(_fuzzed(source, rng))
    job = ShardJob(str(tmp_path), str(tmp_path), FrameSpec(4, short_side=32))
    with Pool(job.read, 2, timeout=20) as pool:
        results = list(pool.imap((0, (f"{i}", f"{i}.mp4")) for i in range(count)))
    assert len(results) == count
    good = [r for r in results if isinstance(r, Pictures)]
    bad = [r for r in results if isinstance(r, Failure)]
    assert len(good) + len(bad) == count and good and bad
    assert all(r.data and len(r.data) == len(r.manifest["indices"]) for r in good)
    assert not [r.reason for r in bad if "--timeout" in r.reason]
