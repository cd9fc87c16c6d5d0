"""`--engine ray` gives the bytes of `--engine local`, also when a machine of the cluster dies on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webvid.heap import make_catalog, tree, write_broken, write_heap

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
GOOD = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes of one core each, started on this machine."""
    pytest.importorskip("ray")
    os.environ["PYTHONPATH"] = str(ROOT)  # of the processes that Ray starts
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 << 20}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
    found.second = found.add_node(num_cpus=1, **memory)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with v/, sixty sound and ten broken videos, and captions.json of all."""
    root = tmp_path_factory.mktemp("heap")
    captions = write_heap(root / "v", GOOD)
    broken = write_broken(root / "v")
    make_catalog(root, {**captions, **{i: f"about {i}" for i in broken}}, "all")
    return root


def _call(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/webvid.py"), *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=500)


def _commands(heap: Path, output: Path) -> list[list[object]]:
    data = ["--catalog", output / "c.parquet"]
    vision = ["--vision_backbone_id", "tiny-vit", "--pretrained_backbones", "false", "--device", "cpu"]
    return [
        ["catalog", "--videos", heap / "v", "--captions", heap / "all.json", "--output", output / "c.parquet"],
        ["extract", *data, "--num_frames", "3", "--output", output / "folders"],
        ["extract", *data, "--num_frames", "3", "--output", output / "shards", "--format", "shards",
         "--clips_per_shard", "6"],
        ["embed", *data, *vision, "--num_frames", "2", "--output", output / "vectors"],
    ]  # fmt: skip


def test_a_cluster_that_loses_a_machine_gives_the_same_bytes(cluster: Any, heap: Path, tmp_path: Path) -> None:
    for args in _commands(heap, tmp_path / "local"):
        done = _call(*args, "--num_workers", "1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    killed = threading.Event()

    def kill_midway() -> None:
        while not list((tmp_path / "ray/shards").glob("*.tar")):
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)
        killed.set()

    threading.Thread(target=kill_midway, daemon=True).start()
    told = []
    for args in _commands(heap, tmp_path / "ray"):
        done = _call(*args, "--num_workers", "1", "--engine", "ray", "--address", cluster.address, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        told.append(done.stdout)
    assert killed.is_set()
    local, ray = tree(tmp_path / "local"), tree(tmp_path / "ray")
    assert set(local) == set(ray)
    assert [name for name in local if local[name] != ray[name]] == []
    assert any(name.endswith("embeddings.npy") for name in local)


def test_no_cluster_is_one_line(heap: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = _call(*_commands(heap, tmp_path)[0], "--engine", "ray", "--address", "127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: --address 127.0.0.1:1: no Ray cluster there" in done.stderr
