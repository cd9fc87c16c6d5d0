"""Two hundred videos, five in a hundred broken in ten ways: the others come out exactly as without them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from prismatic.conf.webvid_media import EmbedConfig, ExtractConfig
from prismatic.video.shards import read_index
from prismatic.webvid.embed import embed
from prismatic.webvid.extract import extract
from tests.webvid.heap import make_catalog, tree, write_broken, write_heap

ROOT = Path(__file__).parent.parent.parent
GOOD = 190


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder with v/, clean.parquet (sound videos alone) and all.parquet; and the ids of the broken ones."""
    root = tmp_path_factory.mktemp("heap")
    captions = write_heap(root / "v", GOOD)
    make_catalog(root, captions, "clean")
    broken = write_broken(root / "v")
    make_catalog(root, {**{i: f"about {i}" for i in broken}, **captions}, "all")
    (root / "v/vanishing.mp4").unlink()
    return root, broken


def test_the_catalog_says_what_is_wrong_with_each(heap: tuple[Path, dict[str, str]]) -> None:
    root, broken = heap
    rows = {row["id"]: row for row in pyarrow.parquet.read_table(root / "all.parquet").to_pylist()}
    clean = {row["id"]: row for row in pyarrow.parquet.read_table(root / "clean.parquet").to_pylist()}
    assert len(rows) == GOOD + len(broken) == 200
    for video_id, said in broken.items():
        assert said in rows[video_id]["status"], video_id
    assert {i: row for i, row in rows.items() if i not in broken} == {i: clean[i] for i in rows if i not in broken}
    assert all(row["status"] == "ok" for i, row in clean.items() if i not in broken)


def test_frames_are_those_of_a_clean_heap(heap: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, _ = heap
    flags = {"num_frames": 2, "num_workers": 2}
    for name in ("clean", "all"):
        catalog = root / f"{name}.parquet"
        extract(ExtractConfig(catalog=catalog, output=tmp_path / f"{name}-f", short_side=16, **flags))
        told = extract(ExtractConfig(catalog=catalog, output=tmp_path / f"{name}-s", format="shards", **flags))
    assert f"{GOOD + 2} videos: {GOOD + 1} done now, 0 from before, 1 failed" in told
    assert "vanishing: " in told and "no such file" in told
    failed = [json.loads(line) for line in (tmp_path / "all-s/failed.jsonl").read_text().splitlines()]
    assert [row["id"] for row in failed] == ["vanishing"]
    found = {n: tree(tmp_path / f"{n}-f", "failed.jsonl") for n in ("clean", "all")}
    assert {n: b for n, b in found["all"].items() if not n.startswith("vfr/")} == found["clean"]
    assert _shard_frames(tmp_path / "clean-s").items() <= _shard_frames(tmp_path / "all-s").items()


def test_vectors_are_those_of_a_clean_heap(tmp_path: Path) -> None:
    captions = write_heap(tmp_path / "v", 10)
    make_catalog(tmp_path, captions, "clean")
    broken = write_broken(tmp_path / "v")
    make_catalog(tmp_path, {**{i: f"about {i}" for i in broken}, **captions}, "all")
    (tmp_path / "v/vanishing.mp4").unlink()
    vectors = {}
    for name in ("clean", "all"):
        told = embed(
            EmbedConfig(
                catalog=tmp_path / f"{name}.parquet",
                vision_backbone_id="tiny-vit",
                pretrained_backbones=False,
                num_frames=2,
                device="cpu",
                output=tmp_path / name,
            )
        )
        ids = (tmp_path / name / "ids.txt").read_text().split()
        matrix = np.load(tmp_path / name / "embeddings.npy")
        vectors[name] = {i: matrix[row].tobytes() for row, i in enumerate(ids)}
    assert "12 videos: 11 done now, 0 from before, 1 failed" in told and "vanishing: " in told
    assert vectors["clean"] == {i: vectors["all"][i] for i in captions}


def _shard_frames(folder: Path) -> dict[str, tuple[bytes, ...]]:
    found = {}
    for tar in sorted(folder.glob("*.tar")):
        data = tar.read_bytes()
        for clip_id, entry in read_index(str(tar)).items():
            found[clip_id] = tuple(data[offset : offset + size] for offset, size in entry.frames)
    return found


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_kill_9_of_the_script_at_any_time(form: str, tmp_path: Path) -> None:
    make_catalog(tmp_path, write_heap(tmp_path / "v", 60))
    args = [sys.executable, str(ROOT / "scripts/webvid.py"), "extract", "--catalog", str(tmp_path / "c.parquet")]
    args += ["--format", form, "--num_frames", "3", "--clips_per_shard", "9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = subprocess.run([*args, "--output", str(tmp_path / "whole")], env=environment, check=True, cwd=tmp_path)
    assert whole.returncode == 0
    cut = tmp_path / "cut"
    kills = 0
    for wanted in (1, 20, 45):
        process = subprocess.Popen(
            [*args, "--output", str(cut)],
            env=environment,
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            made = len(list(cut.glob("*/manifest.json" if form == "folder" else "*.tar"))) if cut.is_dir() else 0
            if made >= (wanted if form == "folder" else wanted // 9):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.wait()
    subprocess.run([*args, "--output", str(cut)], env=environment, check=True, cwd=tmp_path)
    kept = {name: data for name, data in tree(cut).items() if not name.startswith(".")}
    assert kills and kept == tree(tmp_path / "whole")
