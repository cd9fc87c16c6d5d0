"""From videos to checked rows with `scripts/webvid.py`, typed as a user types it."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts.conftest import NUM_TRAIN, ROOT

Typed = Callable[..., str]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs `webvid.py` in this process, expects it to succeed, and returns what it prints."""

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["webvid.py", *args])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "scripts/webvid.py"), run_name="__main__")
        told = capsys.readouterr()
        assert caught.value.code == 0, told.err
        return told.out

    return run


def test_from_videos_to_checked_rows(
    data_root: Path, tmp_path: Path, typed: Typed, refused: Callable[..., str]
) -> None:
    shapes, out = data_root / "moving-shapes", tmp_path
    table, new = str(out / "catalog.parquet"), str(out / "new.parquet")
    typed("catalog", "--videos", str(shapes / "videos"), "--captions", str(shapes / "train.csv"), "--output", table)
    ids = [row["id"] for row in json.loads((shapes / "train.json").read_text())]
    (out / "cleaned.json").write_text(json.dumps({i: f"clip {i}" for i in ids[: NUM_TRAIN // 2]}))
    told = typed("captions", "--input", table, "--captions", str(out / "cleaned.json"), "--output", new)
    assert f"new captions for {NUM_TRAIN // 2} of " in told
    clusters, woven, asked = (str(out / name) for name in ("clusters.json", "woven.json", "asked.json"))
    typed("cluster", "--catalog", new, "--videos_per_cluster", "2", "--output", clusters)
    typed(
        *("weave", "--clusters", clusters, "--catalog", new, "--media_root", str(shapes), "--total_frames", "4"),
        *("--form", "timestamped", "--output", woven),
    )
    typed("prompts", "--annotations", woven, "--k", "2", "--output", asked)  # its question is one of its own
    assert json.loads(Path(asked).read_text()) == json.loads(Path(woven).read_text())
    typed("concat", "--annotations", woven, "--media_root", str(shapes), "--limit", "1", "--output", str(out / "look"))
    assert len(list((out / "look").glob("*.mp4"))) == 1
    check = ("--annotations", woven, "--media_root", str(shapes), "--model.type", "tiny-video", "--decode", "true")
    told = typed("validate", *check, "--num_workers", "0")
    assert f"{NUM_TRAIN // 2} rows; media: {NUM_TRAIN} video" in told and "0 problems" in told

    rows = json.loads(Path(woven).read_text())
    rows[0]["videos"][0] = "videos/gone.mp4"
    Path(woven).write_text(json.dumps(rows))
    assert f"1 problem in {NUM_TRAIN // 2} rows: 1 media" in refused("webvid.py", "validate", *check)
