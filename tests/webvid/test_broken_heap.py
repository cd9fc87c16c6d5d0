"""Videos broken in ten ways among sound ones, one in twenty: the others come out exactly as without them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from prismatic.conf.webvid import ClusterConfig
from prismatic.conf.webvid_media import EmbedConfig, ExtractConfig
from prismatic.conf.webvid_report import ReportConfig
from prismatic.video.shards import read_index
from prismatic.webvid.cluster import cluster
from prismatic.webvid.embed import embed
from prismatic.webvid.extract import extract
from prismatic.webvid.report import report
from tests.webvid.heap import make_catalog, tree, write_broken, write_heap

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Heap:
    """root: with v/, clean.parquet (sound videos alone) and all.parquet. broken: id -> what its status must say."""

    root: Path
    good: int
    broken: dict[str, str]

    @property
    def gone(self) -> list[str]:
        """Ids of the videos that vanish while they are read."""
        return [i for i in self.broken if i.startswith("vanishing")]


# The small one has a tenth of broken ones: a file of each kind.
@pytest.fixture(scope="module", params=[90, pytest.param(1900, marks=pytest.mark.slow)])
def heap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Heap:
    root = tmp_path_factory.mktemp("heap")
    captions = write_heap(root / "v", request.param)
    make_catalog(root, captions, "clean")
    broken = write_broken(root / "v", copies=max(1, request.param // 190))
    # Those that vanish come last, so that the job is on its way when they do.
    last = {i: f"about {i}" for i in sorted(broken, key=lambda i: (i.startswith("vanishing"), i))}
    first = {i: text for i, text in last.items() if not i.startswith("vanishing")}
    make_catalog(root, {**first, **captions, **last}, "all")
    return Heap(root, request.param, broken)


def _vanish(heap: Heap, output: Path, pattern: str) -> threading.Thread:
    """Delete the videos as soon as the first output is there."""

    def wait() -> None:
        while not next(output.glob(pattern), None):
            time.sleep(0.001)
        for name in heap.gone:
            (heap.root / f"v/{name}.mp4").rename(heap.root / f"{name}.away")

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _come_back(heap: Heap, thread: threading.Thread) -> None:
    thread.join(10)
    for name in heap.gone:
        (heap.root / f"{name}.away").rename(heap.root / f"v/{name}.mp4")


def test_the_catalog_says_what_is_wrong_with_each(heap: Heap) -> None:
    rows = {row["id"]: row for row in pyarrow.parquet.read_table(heap.root / "all.parquet").to_pylist()}
    clean = {row["id"]: row for row in pyarrow.parquet.read_table(heap.root / "clean.parquet").to_pylist()}
    assert len(rows) == heap.good + len(heap.broken)
    for video_id, said in heap.broken.items():
        assert said in rows[video_id]["status"], video_id
    sound = {i: row for i, row in rows.items() if i not in heap.broken}
    assert sound == {i: clean[i] for i in sound} and len(sound) == heap.good
    assert all(row["status"] == "ok" for row in sound.values())


def test_frames_are_those_of_a_clean_heap(heap: Heap, tmp_path: Path) -> None:
    forms = {"f": ("folder", "*/manifest.json"), "s": ("shards", "*.tar")}
    for form, (name, pattern) in forms.items():
        flags = {"num_frames": 2, "num_workers": 2, "short_side": 16, "format": name, "clips_per_shard": 10}
        extract(ExtractConfig(catalog=heap.root / "clean.parquet", output=tmp_path / f"clean-{form}", **flags))
        gone = _vanish(heap, tmp_path / f"all-{form}", pattern)
        told = extract(ExtractConfig(catalog=heap.root / "all.parquet", output=tmp_path / f"all-{form}", **flags))
        _come_back(heap, gone)
        total, lost = heap.good + 2 * len(heap.gone), len(heap.gone)
        assert f"{total} videos: {total - lost} done now, 0 from before, {lost} failed" in told
        assert "vanishing: " in told and "no such file" in told
        failed = [json.loads(line) for line in (tmp_path / f"all-{form}/failed.jsonl").read_text().splitlines()]
        assert [row["id"] for row in failed] == heap.gone
    found = {n: tree(tmp_path / f"{n}-f", "failed.jsonl") for n in ("clean", "all")}
    assert {n: b for n, b in found["all"].items() if not n.startswith("vfr")} == found["clean"]
    assert _shard_frames(tmp_path / "clean-s").items() <= _shard_frames(tmp_path / "all-s").items()


def test_the_report_lists_each_with_its_reason(heap: Heap, tmp_path: Path) -> None:
    cluster(ClusterConfig(catalog=heap.root / "all.parquet", output=tmp_path / "clusters.json"))
    files = {"clusters": tmp_path / "clusters.json", "catalog": heap.root / "all.parquet"}
    report(ReportConfig(**files, output=tmp_path / "r.html"))
    listed = [json.loads(line) for line in (tmp_path / "r_files/skipped.jsonl").read_text().splitlines()]
    reasons = {Path(row["video"]).stem: row["reason"] for row in listed if row["where"] == "catalog"}
    wrong = {i: said for i, said in heap.broken.items() if said != "ok"}
    assert set(reasons) == set(wrong)
    assert all(said in reasons[i] for i, said in wrong.items())
    assert "skipped.jsonl" in (tmp_path / "r.html").read_text()


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


@pytest.mark.slow  # `test_kill.py` kills the function; this is the script as a person starts it
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
    assert kills and tree(cut) == tree(tmp_path / "whole")
