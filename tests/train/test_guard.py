"""Numeric faults: steps that must not be taken change nothing, are named and counted, and end the run by policy."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prismatic.train.errors import TrainingError
from prismatic.train.trainer import Trainer
from tests.train.fake_run import FakeLoader

Make = Callable[..., Trainer]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor).clone()


def _state(run: Trainer) -> dict[str, torch.Tensor]:
    """Weights, buffers and the optimizer's tensors."""
    found = {name: _local(value) for name, value in run.vlm.state_dict().items()}
    for number, values in enumerate(run.optimizer.state.values()):
        found |= {f"{number}.{key}": _local(v) for key, v in values.items() if isinstance(v, torch.Tensor)}
    return found


def _bad_step(run: Trainer, step: int) -> tuple[str, ...]:
    """Ids of a micro-batch of step number `step`, which gives NaN from now on."""
    row = next(FakeLoader(30, run.world, per_step=8, per_device=2).iterate(0, step - 1))[1].ids
    run.vlm.poison = row[0]
    return row


def _rows(run: Trainer, name: str) -> list[dict]:
    path = run.run_dir / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_step_that_is_not_finite_is_left_out_bit_for_bit(trainer: Make) -> None:
    run = trainer(stage="full-finetune", on_nan="skip", model_finetune_epochs=1)
    row = _bad_step(run, 2)
    seen: list[dict[str, torch.Tensor]] = []
    step = run.guard.attempt

    def attempt(*args):
        before = _state(run)
        gradients = step(*args)
        if gradients is None:
            after = _state(run)
            assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
            assert all(p.grad is None for p in run.vlm.parameters())
            seen.append(after)
        return gradients

    run.guard.attempt = attempt
    assert run.fit() is None
    assert len(seen) == 1 and run.guard.left_out == 1 and run.guard.in_a_row == 0 and run.at.step == 4
    (left,) = _rows(run, "skipped-steps.jsonl")
    assert left["step"] == 2 and left["ids"] == list(row) and "loss nan" in left["reason"]
    steps = [r for r in _rows(run, "run.jsonl") if "Full-finetune/Skipped Steps" in r]
    assert [r["Full-finetune/Skipped Steps"] for r in steps] == [0, 1, 1, 1]
    assert "Full-finetune/Loss" not in steps[1] and len(run.losses) == 3
    # The rate is a function of the step: that of the step after is the same as without the fault.
    whole = trainer(run_id="whole", stage="full-finetune", model_finetune_epochs=1)
    whole.fit()
    rates = [r["Full-finetune/Learning Rate"] for r in _rows(whole, "whole.jsonl") if "Full-finetune/Loss" in r]
    assert [r["Full-finetune/Learning Rate"] for r in steps if "Full-finetune/Loss" in r] == [rates[0], *rates[2:]]


def test_too_many_in_a_row_end_the_run(trainer: Make) -> None:
    run = trainer(on_nan="skip", max_nan_steps=3)
    forward = run.vlm.forward
    run.vlm.forward = lambda batch: _scaled(forward(batch), float("inf"))
    with pytest.raises(TrainingError, match=r"step 3: .* 3 steps in a row are left out now \(--max_nan_steps 3\)"):
        run.fit()
    assert [row["step"] for row in _rows(run, "skipped-steps.jsonl")] == [1, 2, 3]


def _scaled(out, factor: float):
    out.loss_sum = out.loss_sum * factor
    return out


def test_a_huge_gradient_counts_as_one_by_choice(trainer: Make) -> None:
    run = trainer(on_nan="skip", max_gradient=1e-6, max_nan_steps=2)
    with pytest.raises(TrainingError, match=r"step 2: gradient norm .* is above --max_gradient 1e-06"):
        run.fit()
    calm = trainer(run_id="calm", on_nan="skip", max_gradient=1e6)
    assert calm.fit() is None and calm.guard.left_out == 0


def test_a_step_without_label_tokens_is_left_out_by_choice(trainer: Make) -> None:
    run = trainer(on_nan="skip", max_nan_steps=2)
    run.train_loader.unlabelled = True
    with pytest.raises(TrainingError, match=r"step 2: none of its samples \(row-.* 2 steps in a row"):
        run.fit()
    assert run.guard.left_out == 2


def test_the_account_goes_on_after_a_resume(trainer: Make) -> None:
    first = trainer(on_nan="skip", checkpoint_interval=3)
    _bad_step(first, 2)
    first.train_loader.events = {5: [15]}
    assert first.fit() is signal.SIGTERM
    second = trainer(on_nan="skip")
    assert second.fit() is None
    assert second.guard.left_out == 1
    assert [row["step"] for row in _rows(second, "skipped-steps.jsonl")] == [2]


def test_both_ranks_leave_the_same_step_out(launch: Callable, tmp_path: Path) -> None:
    config = {"on_nan": "skip", "model_finetune_epochs": 1}
    codes, result = launch({"config": config, "poison": "row-3"}, world_size=2)
    assert codes == [0, 0] and result["step"] == 4 and len(result["losses"]) == 3
    (left,) = [json.loads(line) for line in (tmp_path / "run" / "skipped-steps.jsonl").read_text().splitlines()]
    assert "row-3" in left["ids"] and len(left["ids"]) == 2
