"""Trains three thousand steps and prints what grew: `python long_run.py DATA RUNS`. See test_soak.py."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from prismatic import dist
from prismatic.build import build_trainer
from prismatic.conf import cli
from prismatic.conf.run import PretrainConfig
from prismatic.train import live_report
from prismatic.train.usage import host_bytes

# The first validations and checkpoints load their code, and the interpreter's memory is touched page by page at first.
STEPS, WARM = 3000, 1000
EVERY = 25  # steps between two looks at the memory


def _held() -> float:
    """MiB that are held: what the allocator keeps for later comes and goes by more than a leak would show."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return host_bytes() / 2**20


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _shared() -> int:
    return len(os.listdir("/dev/shm"))


def _work() -> None:
    """Always the same: a step is measured by it, because a busy machine makes both slower."""
    matrix = torch.ones(96, 96)
    for _ in range(30):
        matrix = (matrix @ matrix).clamp(0, 1)


def soak(root: Path, runs: Path) -> dict[str, float]:
    """Train on the data in `root`; what grew, by the thousand steps or over all of them."""
    # The page is written a hundred times as often as in a run of days.
    live_report.MIN_SECONDS, live_report.COST_SHARE = 0.2, 0.1
    # Long epochs: what is looked at are steps, with six validations and thirty checkpoints among them.
    folder = root / "moving-shapes"
    rows = json.loads((folder / "train.json").read_text())
    (folder / "long.json").write_text(json.dumps(rows * 42))
    flags = (
        *("--dataset.finetune_stage_components", '["moving-shapes/long.json", "moving-shapes"]'),
        *("--model.type", "tiny-video", "--stage", "full-finetune", "--trackers", '["jsonl"]', "--device", "cpu"),
        *("--dataset.type", "moving-shapes", "--dataset.dataset_root_dir", str(root)),
        *("--model.num_frames", "1", "--model.finetune_global_batch_size", "2"),
        *("--model.finetune_max_steps", str(STEPS), "--dataset.num_workers", "1", "--dataset.decode_timeout", "60"),
        *("--model.finetune_per_device_batch_size", "2", "--run_root_dir", str(runs), "--run_id", "soak"),
        *("--val_dataset.type", "moving-shapes-val", "--val_dataset.dataset_root_dir", str(root)),
        *("--val_dataset.num_workers", "0", "--keep_checkpoints", "1", "--checkpoint_interval", "100"),
    )
    world = dist.start("cpu")
    trainer = build_trainer(cli.parse(PretrainConfig, list(flags)), world)
    memory, files, shared, cpu, pace = (np.ones(STEPS) for _ in range(5))  # of fixed size: they do not grow themselves

    def note(*_: object) -> None:
        at = trainer.at.step
        if at % EVERY == 0 and not trainer.saver.writing:  # a checkpoint under way takes a MiB, and gives it back
            memory[at] = _held()
        files[at], shared[at] = _open_files(), _shared()
        cpu[at] = time.process_time()
        _work()
        pace[at] = time.process_time() - cpu[at]

    trainer.optimizer.register_step_post_hook(note)
    assert trainer.fit() is None
    dist.stop(trainer)
    looked_at = WARM + np.flatnonzero(memory[WARM:] > 1)
    assert len(looked_at) > 20
    slope = float(np.polyfit(looked_at, memory[looked_at], 1)[0]) * 1000
    # Quartiles: what lies between two steps (validation, a checkpoint), or a busy neighbour, is no part of a step.
    steps_cpu = np.diff(cpu) - pace[:-1]
    early, late = (float(np.quantile(steps_cpu[at] / pace[at], 0.25)) for at in (slice(1000, 1990), slice(2000, 2990)))
    figures = {"MiB per 1000 steps": slope, "files": float(files[-1] - files[WARM]), "step": late / early - 1}
    print("MiB", [round(float(m), 1) for m in memory[75::100]])
    return figures | {"shm": float(max(shared[WARM:]) - min(shared[WARM:]))}


if __name__ == "__main__":
    print(json.dumps(soak(Path(sys.argv[1]), Path(sys.argv[2]))))
