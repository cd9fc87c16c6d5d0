"""Two gloo processes: the same training as one, agreed stops, resuming on another number, and a rank that dies."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic import dist
from prismatic.train import weights
from prismatic.train.trainer import Trainer
from tests.train import fake_run

ROOT = Path(__file__).parents[2]
Make = Callable[..., Trainer]


def _alone(trainer: Make, **values) -> tuple[dict[str, torch.Tensor], list[float]]:
    run = trainer(run_id="alone", **values)
    assert run.fit() is None
    return {k: v.clone() for k, v in weights.gather(run.vlm, run.trained_modules).items()}, list(run.losses)


def _assert_near(tmp_path: Path, result: dict, expected: dict[str, torch.Tensor], losses: list[float]) -> None:
    assert result["stop"] is None
    assert result["losses"] == pytest.approx(losses, rel=1e-6)
    state = load_file(tmp_path / "result.json.safetensors")
    assert state.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(state[name], expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("strategy", "local"), [("fsdp-shard-grad-op", 2), ("fsdp-hybrid", 1), ("ddp", 2)])
def test_two_ranks_equal_one_process(
    launch: Callable, trainer: Make, tmp_path: Path, strategy: str, local: int
) -> None:
    """The default, fsdp-full-shard, is what the tests of resuming compare.

    30 examples of 1 to 9 label tokens in steps of 8 = 2 ranks x 2 x 2 accumulated; the last step has fillers.
    """
    config = {"model_finetune_train_strategy": strategy, "stage": "finetune"}
    codes, result = launch({"config": config, "local_world_size": local}, world_size=2)
    assert codes == [0, 0]
    _assert_near(tmp_path, result, *_alone(trainer))
    saved = load_file(tmp_path / "run" / "checkpoints" / "latest-checkpoint.safetensors")
    state = load_file(tmp_path / "result.json.safetensors")
    assert saved.keys() == state.keys() and all(torch.equal(saved[key], state[key]) for key in state)
    rows = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (tmp_path / "alone" / "alone.jsonl").read_text().splitlines()]
    for key in ("Finetune/Validation Loss", "Finetune/Validation Tokens", "Finetune/Gradient Norm"):
        assert [r[key] for r in rows if key in r] == pytest.approx([r[key] for r in alone if key in r], rel=1e-5)


def test_stop_on_one_rank_stops_both_and_one_process_goes_on(launch: Callable, trainer: Make, tmp_path: Path) -> None:
    codes, result = launch({"signals": {"3": [15]}, "rank_to_signal": 1}, world_size=2)
    assert codes == [0, 0] and (result["stop"], result["step"]) == ("SIGTERM", 3)
    expected = _alone(trainer)
    codes, result = launch({})  # Saved by two, resumed by one
    assert codes == [0]
    _assert_near(tmp_path, result, *expected)


def test_saved_by_one_resumed_by_two(launch: Callable, trainer: Make, tmp_path: Path) -> None:
    first = trainer(run_id="run")
    first.train_loader.events = {5: [15]}
    assert first.fit() is signal.SIGTERM
    expected = _alone(trainer)
    codes, result = launch({}, world_size=2)
    assert codes == [0, 0]
    _assert_near(tmp_path, result, *expected)


def test_error_while_saving_reaches_both_ranks(launch: Callable, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    codes, result = launch({}, world_size=2)
    assert codes == [2, 2] and result["error"].startswith("CheckpointError: the checkpoint")


def test_broken_row_of_one_rank_is_told_by_both(launch: Callable) -> None:
    second = dist.World(1, 1, 2, torch.device("cpu"), "gloo")
    batches = next(fake_run.FakeLoader(30, second, per_step=8, per_device=2).iterate(0))
    row = int(batches[0].ids[0].removeprefix("row-"))
    codes, result = launch({"unreadable": row}, world_size=2)
    assert codes == [2, 2]
    assert result["error"] == f"ValueError: process 1 stopped: rows.json, row {row}: cannot be read"


def test_death_of_a_rank_ends_the_other(launch: Callable) -> None:
    began = time.monotonic()
    codes, _ = launch({"signals": {"3": [9]}, "rank_to_signal": 1}, world_size=2)
    assert codes[1] == -9 and codes[0] not in (0, None)
    assert time.monotonic() - began < 30


def test_single_process_has_a_world(world: dist.World) -> None:
    assert (world.rank, world.world_size, world.local_world_size, world.device.type) == (0, 1, 1, "cpu")
