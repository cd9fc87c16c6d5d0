"""Two processes that weave online: rank 0 makes the clusters, both have the same, and both hear what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
COUNT = 24
SCRIPT = """
import json, sys
from pathlib import Path
from prismatic import dist
from prismatic.conf.data import DatasetConfig, OnlineWeaveConfig
from prismatic.webvid import methods
from prismatic.webvid.online import weave_epochs

calls = []
visual = methods.METHODS.get("visual")
methods.METHODS._entries["visual"] = lambda *args: calls.append(1) or visual(*args)
dist.start("cpu")
told = []
for root in map(Path, sys.argv[1:]):
    options = OnlineWeaveConfig(videos_per_example=4, method="visual", clusters=root / "e")
    data = DatasetConfig(finetune_stage_components=(root / "clips.json", root), weave=options)
    try:
        epochs = weave_epochs(data, "finetune", seed=7, num_frames=8)
        told.append([[record.id for record in epochs[epoch]] for epoch in (0, 1)])
    except ValueError as error:
        told.append(str(error))
print(json.dumps([*told, len(calls)]))
dist.stop()
"""


def _two(*roots: Path) -> list[list]:
    """What the two processes print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, roots)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return told


def _write(root: Path, vectors: np.ndarray) -> None:
    rows = [
        {"id": f"v{i}", "video": f"v{i}.mp4", "conversations": [{"from": "human", "value": "<video>\nQ"},
                                                               {"from": "gpt", "value": f"cap{i}"}]}
        for i in range(COUNT)
    ]  # fmt: skip
    (root / "e").mkdir(parents=True)
    (root / "clips.json").write_text(json.dumps(rows))
    np.save(root / "e/embeddings.npy", vectors)
    (root / "e/ids.txt").write_text("".join(f"v{i}\n" for i in range(COUNT)))


def test_both_ranks_have_the_clusters_of_rank_zero(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((COUNT, 8)).astype(np.float16)
    _write(tmp_path / "good", vectors)
    vectors[3] = np.nan
    _write(tmp_path / "bad", vectors)
    (first, wrong, made), (second, heard, made_by_second) = _two(tmp_path / "good", tmp_path / "bad")
    assert first == second and first[0] != first[1] and len(first[0]) == COUNT // 4
    assert len(list((tmp_path / "good/e/.weave").glob("*.npy"))) == 1
    assert "the vector of video 'v3' (row 3) is not finite" in wrong
    assert heard == f"process 0 stopped: {wrong}"
    assert (made, made_by_second) == (2, 0)
