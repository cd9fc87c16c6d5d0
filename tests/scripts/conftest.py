"""What whole-script tests share: a small rendered dataset, a trained run, and a way to call scripts as a user does."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NUM_TRAIN, NUM_VAL = 24, 8
TINY = (
    *("--model.type", "tiny-video", "--stage", "full-finetune", "--model.num_frames", "4"),
    *("--model.finetune_global_batch_size", "4", "--model.finetune_per_device_batch_size", "2"),
    *("--dataset.num_workers", "0", "--trackers", '["jsonl"]', "--device", "cpu"),
)

Script = Callable[..., subprocess.CompletedProcess[str]]


def script_environment() -> dict[str, str]:
    """One thread (a reduction over several gives other last bits) and no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def command(script: str, *args: str, ranks: int = 1) -> list[str]:
    """The command line of a script, under torchrun for more than one rank."""
    path = str(ROOT / "scripts" / script)
    if ranks == 1:
        return [sys.executable, path, *args]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*run, path, *args]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small moving-shapes in it."""
    from prismatic.data.moving_shapes_render import render

    root = tmp_path_factory.mktemp("data")
    render(root / "moving-shapes", seed=7, num_train=NUM_TRAIN, num_val=NUM_VAL, num_workers=1)
    return root


@pytest.fixture(scope="session")
def shapes(data_root: Path) -> tuple[str, ...]:
    """Flags that name the small dataset."""
    return ("--dataset.type", "moving-shapes", "--dataset.dataset_root_dir", str(data_root))


@pytest.fixture
def call() -> Script:
    """Runs a script in a process of its own."""

    def run(script: str, *args: str, ranks: int = 1, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(script, *args, ranks=ranks),
            cwd=ROOT,
            env=script_environment(),
            input=text,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script in this process, expects it to refuse its input, and returns the one line that it prints."""

    def run(script: str, *args: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *args])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert caught.value.code == 2, lines
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture(scope="session")
def trained(data_root: Path, shapes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after eight steps."""
    runs = tmp_path_factory.mktemp("runs")
    args = (*TINY, *shapes, "--model.finetune_max_steps", "8", "--checkpoint_interval", "4", "--keep_checkpoints", "9")
    done = subprocess.run(
        command("pretrain.py", *args, "--run_root_dir", str(runs), "--run_id", "trained"),
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return runs / "trained"


def metric_rows(run_dir: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics file, one a step."""
    lines = (run_dir / f"{run_dir.name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if any(key.endswith("/Loss (Raw)") for key in row)]
