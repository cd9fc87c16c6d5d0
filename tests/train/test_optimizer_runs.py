"""Whole runs with each optimizer: resumed is as if never stopped, two processes are one, averages are what is saved."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic.train import weights
from prismatic.train.optim import OPTIMIZERS, averaged
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]
# adamw-8bit compiles a kernel for each shape of a weight: half a minute here.
SLOW = {"adamw-8bit": pytest.mark.slow}
IDS = [
    pytest.param(
        name,
        marks=[
            *([SLOW[name]] if name in SLOW else []),
            pytest.mark.skipif(bool(spec.package and find_spec(spec.package) is None), reason=f"needs {spec.package}"),
        ],
    )
    for name, spec in OPTIMIZERS.items()
]


def _config(name: str) -> dict[str, object]:
    schedules = OPTIMIZERS.get(name).schedules
    return {
        "model_finetune_optimizer": name,
        "model_finetune_lr_scheduler_type": schedules[0] if schedules else "wsd",
        "model_learning_rates": {"projector.*": 3e-3},
        "model_freeze": ("*layers.0.*",),
    }


def _whole(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in weights.gather(trainer.vlm, trainer.trained_modules).items()}


@pytest.mark.parametrize("name", IDS)
def test_resumed_run_is_bit_for_bit_the_one_that_never_stopped(trainer: Make, name: str) -> None:
    whole = trainer(run_id="whole", checkpoint_interval=3, **_config(name))
    assert whole.fit() is None
    first = trainer(run_id="run", checkpoint_interval=3, **_config(name))
    first.train_loader.events = {5: [15]}
    assert first.fit() is signal.SIGTERM and first.at.step == 5
    second = trainer(run_id="run", checkpoint_interval=3, **_config(name))
    assert second.fit() is None
    assert second.losses == whole.losses
    expected, got = _whole(whole), _whole(second)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", IDS[1:])  # test_two_ranks.py has the first, adamw
def test_two_processes_are_one(launch: Callable, trainer: Make, tmp_path: Path, name: str) -> None:
    alone = trainer(run_id="alone", **_config(name))
    assert alone.fit() is None
    codes, result = launch({"config": _config(name)}, world_size=2, timeout=180)
    assert codes == [0, 0]
    expected, got = _whole(alone), load_file(tmp_path / "result.json.safetensors")
    # Muon and bf16 moments round to 8 bits what differs in the 24th: a step then differs by a part of its size.
    tolerance = {"muon": 2e-3, "adamw-bf16": 1e-3, "adamw-8bit": 1e-3}.get(name, 1e-6)
    assert result["losses"] == pytest.approx(alone.losses, rel=max(1e-6, tolerance))
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=tolerance)


@pytest.mark.skipif(find_spec("schedulefree") is None, reason="needs schedulefree")
def test_averages_are_validated_and_saved_and_training_goes_on_from_the_other_weights(
    trainer: Make, tmp_path: Path
) -> None:
    run = trainer(run_id="run", **_config("schedule-free"))
    assert run.fit() is None
    fast = _whole(run)
    with averaged(run.optimizer) as swapped:
        average = copy.deepcopy(_whole(run))
    assert swapped and all(torch.equal(value, fast[key]) for key, value in _whole(run).items())
    saved = load_file(tmp_path / "run" / "checkpoints" / "latest-checkpoint.safetensors")
    assert all(torch.equal(value, average[key]) for key, value in saved.items())
    moved = {key for key in fast if not torch.equal(fast[key], average[key])}
    assert "projector.weight" in moved and not any("layers.0." in key for key in moved)
