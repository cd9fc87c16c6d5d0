"""`webvid.py concat`: woven rows as videos that decode again to the frames that went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prismatic.conf.webvid_rows import ConcatConfig
from prismatic.video.decode import open_video
from prismatic.webvid.concat import concat
from tests.webvid.videos import write_video


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", frames=6, shade=40)
    write_video(tmp_path / "b.mp4", frames=4, shade=180, size=(64, 32))
    for k in range(3):
        Image.new("RGB", (48, 32), (120, 120, 120)).save(tmp_path / f"{k}.png")
    (tmp_path / "bad.mp4").write_text("no video")
    return tmp_path


def _rows(root: Path, *media: dict[str, Any]) -> Path:
    said = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    path = root / "rows.json"
    path.write_text(json.dumps([{"id": f"r, {i}", **m, "conversations": said} for i, m in enumerate(media)]))
    return path


def _greys(path: Path) -> list[int]:
    with open_video(path) as clip:
        frames = clip.get(np.arange(len(clip)))
    middle = frames[:, frames.shape[1] // 2, frames.shape[2] // 2, 0]
    return [round(int(value) / 10) * 10 for value in middle]


def test_clips_and_frames(root: Path) -> None:
    rows = _rows(root, {"videos": ["a.mp4", "b.mp4"], "num_frames_per_video": 2}, {"frames": ["0.png", "1.png"]})
    cfg = ConcatConfig(annotations=rows, media_root=root, output=root / "look", height=64)
    assert "2 videos made, 0 were there already" in concat(cfg)
    index = [json.loads(line) for line in (root / "look/index.jsonl").read_text().splitlines()]
    assert [row["file"] for row in index] == ["000000-r_0.mp4", "000001-r_1.mp4"]
    assert index[0]["media"] == ["a.mp4", "b.mp4"] and index[0]["conversations"][1]["value"] == "A"
    assert _greys(root / "look/000000-r_0.mp4") == [40] * 6 + [180] * 4
    with open_video(root / "look/000000-r_0.mp4") as clip:
        assert (clip.height, clip.width) == (64, 96) and clip.fps == pytest.approx(5)
    before = (root / "look/000000-r_0.mp4").stat().st_mtime_ns
    assert "0 videos made, 2 were there already" in concat(cfg)
    assert (root / "look/000000-r_0.mp4").stat().st_mtime_ns == before

    cfg.what, cfg.output = "frames", root / "seen"
    concat(cfg)
    assert _greys(root / "seen/000000-r_0.mp4") == [40, 40, 180, 180]
    with open_video(root / "seen/000000-r_0.mp4") as clip:
        assert clip.fps == pytest.approx(1)


def test_broken_media_are_told(root: Path) -> None:
    rows = _rows(root, {"videos": ["a.mp4", "bad.mp4"]}, {"video": "a.mp4"}, {})
    cfg = ConcatConfig(annotations=rows, media_root=root, output=root / "look", height=32)
    told = concat(cfg)
    assert "1 videos made" in told and "skipped 1: " in told and "bad.mp4" in told
    assert sorted(p.name for p in (root / "look").iterdir()) == ["000001-r_1.mp4", "concat.json", "index.jsonl"]
    cfg.annotations = _rows(root, {"video": "bad.mp4"})
    with pytest.raises(ValueError, match=r"no row could be shown; the first: .*bad\.mp4"):
        concat(cfg)
    cfg.what = "all"
    with pytest.raises(ValueError, match="--what must be clips or frames"):
        concat(cfg)


def test_other_settings_need_another_folder(root: Path) -> None:
    cfg = ConcatConfig(annotations=_rows(root, {"video": "a.mp4"}), media_root=root, output=root / "look")
    concat(cfg)
    cfg.height = 64
    with pytest.raises(ValueError, match=r"made with other settings: height 256 \(now 64\); use another"):
        concat(cfg)
    cfg.annotations = root / "none.json"
    with pytest.raises(ValueError, match=r"--annotations .*none.json: no such file"):
        concat(cfg)
