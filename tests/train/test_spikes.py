"""Loss spikes: told from scatter and from steep curves, with the ids of all ranks, and not twice after a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prismatic.train.spikes import MIN_LOSSES, is_spike
from prismatic.train.trainer import Trainer


def test_a_spike_stands_out_of_the_scatter() -> None:
    usual = list(np.random.default_rng(0).normal(2.0, 0.1, 128))
    assert not is_spike(usual, 2.3) and is_spike(usual, 4.0) and not is_spike(usual, 1.0)
    assert is_spike([*usual[:-8], *[9.0] * 8], 4.0)  # spikes before it do not hide it
    assert not is_spike(usual[: MIN_LOSSES - 1], 100.0)
    assert not is_spike([2.0] * 64, 2.1) and is_spike([2.0] * 64, 3.0)


def test_no_false_alarm_in_ordinary_curves() -> None:
    random = np.random.default_rng(1)
    for decay in (3.0, 30.0, 300.0):
        curve = 1.0 + 8.0 * np.exp(-np.arange(1000) / decay) + random.normal(0, 0.15, 1000)
        assert not [i for i in range(1000) if is_spike(list(curve[max(0, i - 128) : i]), curve[i])]


def _spiky(run: Trainer, step: int) -> None:
    forward, calls = run.vlm.forward, []

    def spiking(batch):
        out = forward(batch)
        if run.vlm.training and run.at.step == step - 1:
            calls.append(batch.ids)
            out.loss_sum = out.loss_sum * (60 if len(calls) == 2 else 1)
        return out

    run.vlm.forward = spiking


def test_report_names_the_worst_micro_batch(trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(model_finetune_max_steps=34, model_finetune_learning_rate=1e-5, validation_interval=None)
    _spiky(run, 30)
    run.fit()
    (row,) = [json.loads(line) for line in (run.run_dir / "spikes.jsonl").read_text().splitlines()]
    assert row["step"] == 30 and row["loss"] > 3 * row["usual"]
    worst, *others = row["micro_batches"]
    assert len(worst["ids"]) == 2 and worst["loss"] > 20 * max(other["loss"] for other in others)
    assert "step 30: loss" in caplog.text and worst["ids"][0] in caplog.text
    run.telling.spikes.resume(29)
    assert (run.run_dir / "spikes.jsonl").read_text() == ""


def test_every_rank_tells_its_samples(launch: Callable, tmp_path: Path) -> None:
    config = {"model_finetune_max_steps": 30, "model_finetune_learning_rate": 1e-5, "model_finetune_epochs": 8}
    codes, _ = launch({"config": config, "spike_at": 29, "trainer": {"count": 32}}, world_size=2)
    assert codes == [0, 0]
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "spikes.jsonl").read_text().splitlines()]
    assert row["step"] == 29
    assert len({i for batch in row["micro_batches"] for i in batch["ids"]}) == 8  # the whole step, of both ranks
