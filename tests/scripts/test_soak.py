"""Two thousand steps of the whole machinery: nothing grows, nothing slows down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prismatic import dist
from prismatic.build import build_trainer
from prismatic.conf import cli
from prismatic.conf.run import PretrainConfig
from prismatic.train import live_report
from prismatic.train.usage import host_bytes
from tests.scripts.conftest import TINY

STEPS, WARM = 2000, 500


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _shared() -> int:
    return len(os.listdir("/dev/shm"))


@pytest.mark.slow
def test_two_thousand_steps(
    shapes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable
) -> None:
    # The page is written a hundred times as often as in a run of days.
    monkeypatch.setattr(live_report, "MIN_SECONDS", 0.2)
    monkeypatch.setattr(live_report, "COST_SHARE", 0.1)
    # Long epochs: what is looked at are steps, with four validations and checkpoints among them.
    folder = Path(shapes[3]) / "moving-shapes"
    rows = json.loads((folder / "train.json").read_text())
    (folder / "long.json").write_text(json.dumps(rows * 42))
    flags = (
        *("--dataset.finetune_stage_components", '["moving-shapes/long.json", "moving-shapes"]'),
        *(*TINY, *shapes, "--model.num_frames", "1", "--model.finetune_global_batch_size", "2"),
        *("--model.finetune_max_steps", str(STEPS), "--dataset.num_workers", "1", "--dataset.decode_timeout", "60"),
        *("--model.finetune_per_device_batch_size", "2", "--run_root_dir", str(tmp_path), "--run_id", "soak"),
        *("--val_dataset.type", "moving-shapes-val", "--val_dataset.dataset_root_dir", shapes[3]),
        *("--val_dataset.num_workers", "0", "--keep_checkpoints", "1"),
    )
    world = dist.start("cpu")
    trainer = build_trainer(cli.parse(PretrainConfig, list(flags)), world)
    memory, files, shared, cpu = [], [], [], []

    def note(*_: object) -> None:
        memory.append(host_bytes() / 2**20)
        files.append(_open_files())
        shared.append(_shared())
        cpu.append(time.process_time())

    trainer.optimizer.register_step_post_hook(note)
    assert trainer.fit() == 0
    dist.stop(trainer)
    steps = np.arange(WARM, STEPS)
    slope = float(np.polyfit(steps, memory[WARM:], 1)[0]) * 1000
    # Medians: validations and checkpoints between two steps are no part of a step.
    times = np.diff(cpu)
    early, late = (float(np.median(part)) for part in (times[WARM : WARM + 500], times[-500:]))
    figures = {"MiB per 1000 steps": slope, "files": files[-1] - files[WARM], "step": late / early - 1}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    assert slope <= 0.5, figures
    assert abs(files[-1] - files[WARM]) <= 1 and max(shared[WARM:]) - min(shared[WARM:]) <= 8, figures
    assert late <= 1.02 * early, figures
