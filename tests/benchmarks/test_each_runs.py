"""Every benchmark runs to its end in small: its gate is open, and it prints a line for machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IN_SMALL = {
    "checkpoint": "--mb 2,3 --repeats 1",
    "cluster": "--n 400,0.8k --d 32 --L 4,8 --repeats 1 --peers greedy",
    "decode": "--T 4 --gop 60 --clips 1 --repeats 1 --threads 1 --peers pyav",
    "dist": "--config tiny --nproc 1,2 --repeats 1",
    "eval": "--config tiny --clips 2",
    "extract": "--clips 2 --frames 2 --repeats 1",
    "features": "--config tiny --repeats 1 --aggregator concat,stpool",
    "generate": "--config tiny --T 1,2 --bs 1,2 --new 4 --repeats 1",
    "import": "--repeats 1",
    "index": "--n 40k",
    "loader": "--src png feat --clips 1 --frames 2 --epochs 1 --repeats 1 --workers 1",
    "memory": "--T 1,4 --recompute none",
    "pack": "--mix 1,4,8,16 --per_frame 4 --global_batch 4 --batch 2 --examples 8 --width 64 --repeats 1",
    "scaling": "--T 1..2 --repeats 1",
    "train": "--config tiny --peer upstream --steps 2 --aggregator concat,mean",
    "weave": "--n 400 --loop_n 0.4k --L 4",
}
ON_A_CPU = {
    "train": "--config tiny --device cpu --steps 2 --optimizer adamw",
    "generate": "--config tiny --device cpu --new 4 --bs 1,2 --repeats 1",
}
"""What is for a GPU (benchmarks/h200)."""


def test_all_are_here() -> None:
    assert {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")} == {f"bench_{name}" for name in IN_SMALL}
    assert {path.stem for path in (ROOT / "benchmarks" / "h200").glob("*.py")} == set(ON_A_CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_SMALL)
def test_runs(name: str, tmp_path: Path) -> None:
    _run([f"benchmarks/bench_{name}.py", *IN_SMALL[name].split()], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_A_CPU)
def test_what_is_for_a_gpu_runs_on_a_cpu(name: str, tmp_path: Path) -> None:
    _run([f"benchmarks/h200/{name}.py", *ON_A_CPU[name].split()], tmp_path)


def _run(arguments: list[str], tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert told and all("benchmark" in line and "machine" in line for line in told), done.stdout
