"""SIGKILL of every step at random moments: given again, it ends with the bytes of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from prismatic.conf.webvid import CatalogConfig, ClusterConfig, WeaveConfig
from prismatic.conf.webvid_media import ExtractConfig, SplitConfig
from prismatic.conf.webvid_rows import CaptionsConfig
from prismatic.webvid.catalog import catalog
from prismatic.webvid.cluster import cluster
from prismatic.webvid.extract import extract
from prismatic.webvid.join_captions import captions
from prismatic.webvid.split import split
from prismatic.webvid.weave import weave
from tests.webvid.heap import make_catalog, tree, write_heap

ROOT = Path(__file__).parent.parent.parent
GOOD = 24


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v/ and its catalog c.parquet, look-alike vectors in e/, more captions in new.json."""
    root = tmp_path_factory.mktemp("heap")
    names = write_heap(root / "v", GOOD)
    make_catalog(root, names)
    (root / "e").mkdir()
    np.save(root / "e/embeddings.npy", np.random.default_rng(0).standard_normal((GOOD, 16)).astype(np.float16))
    (root / "e/ids.txt").write_text("".join(f"{i}\n" for i in names))
    (root / "new.json").write_text(json.dumps({i: f"new {i}" for i in names}))
    return root


def _steps(heap: Path, out: Path) -> dict[str, Callable[[], str]]:
    data = {"catalog": heap / "c.parquet"}
    grouped = {"embeddings": heap / "e", "videos_per_cluster": 4, "method": "visual", "output": out / "clusters.json"}
    return {
        "catalog": lambda: catalog(CatalogConfig(heap / "v", heap / "c.json", out / "c.parquet")),
        "folders": lambda: extract(ExtractConfig(**data, num_frames=2, output=out / "folders")),
        "shards": lambda: extract(
            ExtractConfig(**data, num_frames=2, format="shards", clips_per_shard=5, output=out / "shards")
        ),
        "split": lambda: split(SplitConfig(**data, val_size=3, embeddings=heap / "e", output=out / "split")),
        "cluster": lambda: cluster(ClusterConfig(**data, **grouped)),
        "captions": lambda: captions(
            CaptionsConfig(input=heap / "c.parquet", captions=str(heap / "new.json"), output=out / "new.parquet")
        ),
        "weave": lambda: weave(
            WeaveConfig(clusters=out / "clusters.json", **data, epochs=3, output=out / "woven.json")
        ),
    }


def _fork(step: Callable[[], str], kill_after: float | None = None) -> float:
    """Run a step in a fork, or kill it after some seconds. Returns the seconds that it took."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            # The server that starts processes is a child of the other one: this one needs its own.
            forkserver._forkserver._forkserver_pid = forkserver._forkserver._forkserver_alive_fd = None
            # Forks share the lock of progress bars: one that is killed while it holds it would stop all that follow.
            tqdm.set_lock(threading.RLock())
            step()
            os._exit(0)
        finally:
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert kill_after is not None or status == 0
    return time.monotonic() - started


@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_every_step_ends_with_the_same_bytes(kills: int, heap: Path, tmp_path: Path) -> None:
    rng = random.Random(kills)
    for name, step in _steps(heap, tmp_path / "whole").items():
        took = _fork(step)
        again = _steps(heap, tmp_path / "cut")[name]
        for _ in range(kills):
            _fork(again, kill_after=rng.uniform(0, took))
        _fork(again)
        whole, cut = tree(tmp_path / "whole"), tree(tmp_path / "cut")
        assert set(cut) == set(whole), name
        assert [n for n in whole if cut[n] != whole[n]] == [], name


@pytest.mark.slow
def test_embed_ends_with_the_same_bytes(heap: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/webvid.py"), "embed", "--catalog", str(heap / "c.parquet")]
    command += ["--vision_backbone_id", "tiny-vit", "--pretrained_backbones", "false", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    subprocess.run([*command, "--output", str(tmp_path / "whole")], env=environment, check=True)
    took = time.monotonic() - started
    rng = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen([*command, "--output", str(tmp_path / "cut")], env=environment)
        time.sleep(rng.uniform(0.3, 1) * took)
        process.kill()
        process.wait()
    subprocess.run([*command, "--output", str(tmp_path / "cut")], env=environment, check=True)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
