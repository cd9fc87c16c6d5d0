"""Killed at random moments, preempted, a rank that dies: what is lost, what goes on, and that nothing shows in the end.

The short ones run always; a hundred kills and twenty deaths are for `make soak`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic.train import folder
from prismatic.train.jsonl import read_rows
from prismatic.train.trainer import Trainer
from tests.train import fake_run

ROOT = Path(__file__).parents[2]
Make = Callable[..., Trainer]
INTERVAL, STEPS = 3, 40
LONG = {"config": {"checkpoint_interval": INTERVAL, "keep_checkpoints": 1}, "trainer": {"count": 160, "dropout": 0.2}}


def _logged(run_dir: Path) -> list[int]:
    path = run_dir / "run.jsonl"
    rows = list(read_rows(path)) if path.exists() else []
    return [row["Finetune/Step"] for row in rows if "Finetune/Loss" in row]


def _undisturbed(trainer: Make, tmp_path: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    run = trainer(run_id="undisturbed", **LONG["config"], **LONG["trainer"])
    assert run.fit() is None and run.at.step == STEPS
    rows = list(read_rows(tmp_path / "undisturbed" / "undisturbed.jsonl"))
    return load_file(run.run_dir / "checkpoints" / "latest-checkpoint.safetensors"), rows


def _curve(rows: list[dict]) -> list[tuple]:
    keys = ("Step", "Loss", "Loss (Raw)", "Learning Rate", "Gradient Norm", "Validation Loss")
    return [tuple(row.get(f"Finetune/{key}") for key in keys) for row in rows]


def _kill_until(
    launch: Callable, tmp_path: Path, expected: tuple[dict, list[dict]], kills: int, seed: int
) -> tuple[int, int]:
    """Runs that are killed at random moments and gone on with, one after the other, until so many kills have been.

    Returns how many of the kills came inside a save, and how many runs came to their end.
    """
    choose, inside, done, killed = random.Random(seed), 0, 0, 0
    run_dir, seconds = tmp_path / "run", 0.8
    left: set[tuple[str, int]] = set()
    while killed < kills:
        before = folder.find_latest(run_dir)
        start = folder.read_state(before)["step"] if before else 0
        codes, result = launch({**LONG, "die_after": choose.uniform(0.02, seconds)})
        logged = _logged(run_dir)
        if codes == [-9]:
            killed += 1
            here = run_dir / "checkpoints"
            halves = [p for p in here.iterdir() if p.name.endswith(".partial")] if here.exists() else []
            before_that, left = left, {(p.name, p.lstat().st_mtime_ns) for p in halves}
            inside += bool(left - before_that)
            found = folder.find_latest(run_dir)
            after = folder.read_state(found)["step"] if found else 0
            assert after >= start
            # On a machine that has much else to do, lives must be longer to come to anything.
            seconds = seconds * 1.5 if after == start else max(0.8, seconds / 1.5)
            # A save may be under way for an interval, not longer: the next one waits for it.
            assert (logged[-1] if logged else 0) - after <= 2 * INTERVAL
            link = here / folder.LATEST
            assert not link.is_symlink() or load_file(link)
            continue
        assert codes == [0] and result["step"] == STEPS
        assert logged == list(range(1, STEPS + 1))
        assert _curve(list(read_rows(run_dir / "run.jsonl"))) == _curve(expected[1])
        weights = load_file(run_dir / "checkpoints" / "latest-checkpoint.safetensors")
        assert all(torch.equal(weights[key], expected[0][key]) for key in expected[0])
        done += 1
        run_dir.rename(tmp_path / f"done-{done}")
    return inside, done


def test_killed_at_random_moments(launch: Callable, trainer: Make, tmp_path: Path) -> None:
    expected = _undisturbed(trainer, tmp_path)
    _kill_until(launch, tmp_path, expected, kills=4, seed=1)
    codes, result = launch(LONG)
    assert codes == [0] and result["step"] == STEPS
    assert _curve(list(read_rows(tmp_path / "run" / "run.jsonl"))) == _curve(expected[1])
    weights = load_file(tmp_path / "run" / "checkpoints" / "latest-checkpoint.safetensors")
    assert all(torch.equal(weights[key], expected[0][key]) for key in expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_a_hundred_times(launch: Callable, trainer: Make, tmp_path: Path, seed: int) -> None:
    inside, done = _kill_until(launch, tmp_path, _undisturbed(trainer, tmp_path), kills=100, seed=seed)
    assert inside >= 10 and done >= 3


@pytest.mark.slow
def test_twenty_deaths_of_a_rank_end_the_other(launch: Callable, tmp_path: Path) -> None:
    for number in range(20):
        began = time.monotonic()
        config = {"run_id": f"run-{number}", "checkpoint_interval": 1}
        death = {"signals": {str(1 + number % 7): [9]}, "rank_to_signal": number % 2}
        codes, _ = launch({**death, "config": config}, world_size=2)
        assert codes[number % 2] == -9 and codes[1 - number % 2] not in (0, None)
        assert time.monotonic() - began < 30
        codes, result = launch({"config": config}, world_size=2)
        assert codes == [0, 0] and result["step"] == 8


def test_torchrun_starts_again_after_a_death(tmp_path: Path, trainer: Make) -> None:
    """Rank 1 is killed in its first life, before step 6; the second life goes on from a checkpoint."""
    alone = trainer(run_id="alone")
    assert alone.fit() is None
    out = tmp_path / "result.json"
    options = {"root": str(tmp_path), "out": str(out), "signals": {"5": [9]}, "rank_to_signal": 1}
    options |= {"config": {"checkpoint_interval": 2}}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "--max-restarts", "1", fake_run.__file__, json.dumps(options)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert result["losses"] == pytest.approx(alone.losses, rel=1e-6) and len(result["ids"]) in (4, 6)
    state, whole = load_file(f"{out}.safetensors"), load_file(alone.run_dir / "checkpoints" / folder.LATEST)
    for name in whole:
        torch.testing.assert_close(state[name], whole[name], rtol=0, atol=1e-6)
    assert _logged(tmp_path / "run") == list(range(1, 9))
    # One voice: the second process is silent.
    assert done.stderr.count("Resuming  from") == 1 and done.stderr.count("step 8/8") == 1


@pytest.mark.parametrize(("before", "after"), [(2, 4), (2, 1)])
def test_resumed_on_another_number_of_processes(
    launch: Callable, trainer: Make, tmp_path: Path, before: int, after: int
) -> None:
    """The same examples in the same steps, the same losses, the same weights."""
    alone = trainer(run_id="alone")
    assert alone.fit() is None
    codes, _ = launch({"signals": {"3": [15]}, "rank_to_signal": 0}, world_size=before)
    assert codes == [0] * before
    codes, result = launch({}, world_size=after)
    assert codes == [0] * after
    assert result["ids"] == [sorted(ids) for ids in alone.train_loader.given[3:]]
    assert result["losses"] == pytest.approx(alone.losses, abs=1e-6)
    state, whole = (
        load_file(tmp_path / "result.json.safetensors"),
        load_file(alone.run_dir / "checkpoints" / folder.LATEST),
    )
    for name in whole:
        torch.testing.assert_close(state[name], whole[name], rtol=0, atol=1e-6)


def test_metrics_are_whole_after_a_kill_at_any_byte(trainer: Make) -> None:
    """Cut at every byte of the last rows: what is read is whole rows, and a run that goes on leaves each step once."""
    first = trainer()
    first.train_loader.events = {6: [15]}
    assert first.fit() is signal.SIGTERM
    path = first.run_dir / "run.jsonl"
    content = path.read_bytes()
    end = content.rindex(b"\n", 0, len(content) - 1)
    for cut in range(content.rindex(b"\n", 0, end) + 1, len(content) + 1):
        path.write_bytes(content[:cut])
        rows = list(read_rows(path))
        assert len(rows) == content[:cut].count(b"\n")
        assert [row["Finetune/Step"] for row in rows if "Finetune/Loss" in row] == list(range(1, len(rows)))
    path.write_bytes(content + content[:40])
    second = trainer()
    assert second.fit() is None
    assert _logged(second.run_dir) == list(range(1, 9))
    assert all(json.loads(line) for line in path.read_text().splitlines())
