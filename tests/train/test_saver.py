"""When checkpoints are written: beside the training, by minutes, the best kept, and what a save that fails does."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic.train import checkpoint, files, folder, saver, staging
from prismatic.train.errors import CheckpointError
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]


def _steps(run: Trainer) -> list[int]:
    return sorted(folder.read_state(path)["step"] for path in folder.resumable(run.run_dir))


def _slow_writing(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    original = files.write_tensors

    def slow(*args: object) -> None:
        before()
        original(*args)

    monkeypatch.setattr(files, "write_tensors", slow)


def test_steps_go_on_while_a_checkpoint_is_written(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(checkpoint_interval=2, keep_checkpoints=9)
    seen = []

    def wait() -> None:
        end = time.monotonic() + 5
        while run.at.step in (2, 6) and run.at.step_in_epoch and time.monotonic() < end:
            time.sleep(0.002)
        seen.append(run.at.step)

    _slow_writing(monkeypatch, wait)
    assert run.fit() is None
    assert _steps(run) == [2, 4, 6, 8]
    assert seen[0] > 2 and seen[2] > 6


def test_waiting_instead_of_copying(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(checkpoint_interval=2, keep_checkpoints=9, checkpoint_async=False)
    seen = []
    _slow_writing(monkeypatch, lambda: seen.append(run.at.step))
    assert run.fit() is None
    assert seen == [2, 4, 6, 8]


def test_without_memory_for_copies_it_waits_and_says_so(
    trainer: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(staging, "MEMORY_SHARE", 0.0)
    run = trainer(checkpoint_interval=2, keep_checkpoints=9)
    seen = []
    _slow_writing(monkeypatch, lambda: seen.append(run.at.step))
    assert run.fit() is None
    assert seen == [2, 4, 6, 8]
    assert caplog.text.count("--checkpoint_async false") == 1


@pytest.mark.parametrize("delay", ["copy", "write"])
def test_what_is_written_is_the_state_of_its_step(trainer: Make, monkeypatch: pytest.MonkeyPatch, delay: str) -> None:
    """However late the copy or the writing, later steps do not show in it."""
    plain = trainer(run_id="plain", stage="full-finetune", checkpoint_interval=1, keep_checkpoints=9)
    plain.saver._async = False
    plain.saver._cfg.checkpoint_async = False
    plain.fit()
    module, name = (staging, "_copy") if delay == "copy" else (files, "write_tensors")
    original = getattr(module, name)

    def late(*args: object) -> object:
        time.sleep(0.03)
        return original(*args)

    monkeypatch.setattr(module, name, late)
    run = trainer(stage="full-finetune", checkpoint_interval=1, keep_checkpoints=9)
    run.fit()
    assert _steps(run) == _steps(plain) == [1, 2, 3, 4, 5, 6, 7, 8]
    for one, two in zip(folder.resumable(run.run_dir), folder.resumable(plain.run_dir), strict=True):
        assert folder.read_state(one)["losses"] == folder.read_state(two)["losses"]
        values = []
        for path in (one, two):
            target = trainer(run_id="target", stage="full-finetune", model_seed=3)
            checkpoint.restore(path, target.vlm, target.optimizer)
            tree = checkpoint.contents(target.vlm, target.optimizer)
            values.append({path: staging.local(tensor).clone() for path, tensor in staging.leaves(tree)})
        assert values[0].keys() == values[1].keys()
        assert all(torch.equal(values[0][key], values[1][key]) for key in values[0])
        whole = [load_file(path.parent / folder.read_state(path)["weights"]) for path in (one, two)]
        assert all(torch.equal(whole[0][key], whole[1][key]) for key in whole[1])


def test_the_next_save_waits_for_the_one_before_and_says_so(
    trainer: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saver, "WAIT_WORTH_TELLING", 0.02)
    under_way, most = [0], [0]

    def count() -> None:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.1)
        under_way[0] -= 1

    _slow_writing(monkeypatch, count)
    run = trainer(checkpoint_interval=1, keep_checkpoints=9)
    with caplog.at_level("INFO", logger="prismatic"):
        run.fit()
    assert _steps(run) == list(range(1, 9)) and most == [1]
    assert "until the checkpoint before was written; a larger --checkpoint_interval spares that" in caplog.text
    assert "training stood still for" in caplog.text


def test_a_position_is_saved_once(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    _slow_writing(monkeypatch, lambda: names.append(1))
    run = trainer(checkpoint_interval=3)
    run.train_loader.events = {3: [signal.SIGTERM]}
    assert run.fit() is signal.SIGTERM and run.at.step == 3
    assert len(names) == 1


def test_signals_while_the_last_checkpoint_is_written_change_nothing(
    trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _slow_writing(monkeypatch, lambda: [os.kill(os.getpid(), n) for n in (signal.SIGTERM, signal.SIGINT)])
    run = trainer()
    run.train_loader.events = {2: [signal.SIGTERM]}
    began = time.monotonic()
    assert run.fit() is signal.SIGTERM
    assert time.monotonic() - began < 5
    assert folder.find_latest(run.run_dir).name == "step-000002"
    assert load_file(run.run_dir / "checkpoints" / "latest-checkpoint.safetensors")
    monkeypatch.undo()
    second, whole = trainer(), trainer(run_id="whole")
    assert second.fit() is None and whole.fit() is None and second.losses == whole.losses


def test_a_full_disk_does_not_stop_the_training(
    trainer: Make, file_limit: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(checkpoint_interval=2, keep_checkpoints=9)
    original = checkpoint.write

    def write(job: checkpoint.Job) -> Path:
        with file_limit(20_000 if job.state["step"] in (2, 6) else 2**30):
            return original(job)

    monkeypatch.setattr(checkpoint, "write", write)
    with caplog.at_level("INFO", logger="prismatic"):
        assert run.fit() is None
    assert _steps(run) == [4, 8]
    failures = [r.getMessage() for r in caplog.records if r.levelname == "ERROR" and r.name.startswith("prismatic")]
    assert len(failures) == 2 and "There is no earlier one" in failures[0]
    for text, step, good in ((failures[0], 2, "There is no earlier one"), (failures[1], 6, "step-000004")):
        assert f"{run.run_dir}/checkpoints/step-00000{step}" in text and good in text
        assert "kB) could not be written: " in text and "are free on that disk" in text
        assert text.endswith("the training goes on (--on_save_error continue)")
    assert not [p for p in (run.run_dir / "checkpoints").iterdir() if p.name.startswith(".")]


def test_a_disk_that_stays_full_is_an_error_at_the_end(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(checkpoint_interval=2)
    original = checkpoint.write

    def write(job: checkpoint.Job) -> Path:
        monkeypatch.setattr(files, "check_space", _no_room if job.state["step"] > 2 else lambda *_: None)
        return original(job)

    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(CheckpointError, match=r"step-000008 .*no room.* whole: .*step-000002"):
        run.fit()
    assert run.at.step == 8 and _steps(run) == [2]


def test_stop_on_a_save_that_fails(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(checkpoint_interval=1, on_save_error="stop")
    original, slow = checkpoint.write, run.train_step

    def write(job: checkpoint.Job) -> Path:
        monkeypatch.setattr(files, "check_space", _no_room if job.state["step"] > 2 else lambda *_: None)
        return original(job)

    def step(*args: object) -> int | None:
        time.sleep(0.02)
        return slow(*args)

    monkeypatch.setattr(checkpoint, "write", write)
    monkeypatch.setattr(run, "train_step", step)
    with pytest.raises(CheckpointError, match=r"step-000003 .*no room"):
        run.fit()
    assert run.at.step in (3, 4) and _steps(run) == [1, 2]


def _no_room(*_: object) -> None:
    raise OSError("no room")


def test_every_so_many_minutes_by_a_clock_that_nobody_sets(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 4e9, -1e9, 1e8])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    run = trainer(checkpoint_minutes=1.0, keep_checkpoints=99, count=160, keep_best=0)
    run.saver._clock = lambda: 10.0 * run.at.step
    run.saver._since = 0.0
    assert run.fit() is None
    steps = _steps(run)
    gaps = [b - a for a, b in itertools.pairwise([0, *steps]) if b not in (20, 40)]
    # Six steps are a minute. While a save is under way, a next one can wait.
    assert {20, 40} < set(steps) and min(gaps) >= 6 and len(gaps) >= 2
    rows = [json.loads(line) for line in (run.run_dir / "run.jsonl").read_text().splitlines()]
    seconds = [row["Finetune/Step Time"] for row in rows if "Finetune/Step Time" in row]
    assert len(seconds) == 40 and all(0 < value < 100 for value in seconds)


def test_stopped_before_the_first_step(trainer: Make) -> None:
    """There is no state of an optimizer yet, and none is made up when the run goes on."""
    first = trainer()
    first.train_loader.events = {0: [signal.SIGTERM]}
    assert first.fit() is signal.SIGTERM and first.at.step == 0 and not first.optimizer.state
    second, whole = trainer(), trainer(run_id="whole")
    assert second.fit() is None and whole.fit() is None and second.losses == whole.losses


def test_ranks_agree_on_the_minutes(launch: Callable) -> None:
    codes, result = launch({"config": {"checkpoint_minutes": 1e-4, "keep_checkpoints": 9}}, world_size=2)
    assert codes == [0, 0] and result["step"] == 8


def _validated(run: Trainer, monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Have the validations give these losses, by step."""

    monkeypatch.setattr("prismatic.train.trainer.measure", lambda *_: {})
    monkeypatch.setattr("prismatic.train.trainer.mean_loss", lambda _: losses[run.at.step])
    monkeypatch.setattr("prismatic.train.trainer.narration.validated", lambda *_: None)


def _targets(run: Trainer) -> tuple[str, str | None]:
    here = run.run_dir / "checkpoints"
    best = here / folder.BEST
    return os.readlink(here / folder.LATEST)[:11], os.readlink(best)[:11] if best.is_symlink() else None


def test_the_best_checkpoint_is_kept(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {1: 4.0, 2: 3.0, 3: 3.5, 4: 3.0, 5: 9.0, 6: 2.5, 7: float("nan"), 8: 3.1}
    run = trainer(validation_interval=1, keep_checkpoints=1)
    _validated(run, monkeypatch, values)
    assert run.fit() is None
    # Of step 6 there is one because it was the best: no interval asks for it.
    assert _steps(run) == [6, 8] and _targets(run) == ("step-000008", "step-000006")
    assert load_file(run.run_dir / "checkpoints" / folder.BEST)


def test_some_best_ones_or_none(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {1: 4.0, 2: 3.0, 3: 2.0, 4: 5.0, 5: 2.5, 6: 6.0, 7: 6.0, 8: 6.0}
    three = trainer(run_id="three", validation_interval=1, checkpoint_interval=1, keep_checkpoints=1, keep_best=3)
    _validated(three, monkeypatch, values)
    three.fit()
    assert _steps(three) == [2, 3, 5, 8] and _targets(three) == ("step-000008", "step-000003")
    none = trainer(run_id="none", validation_interval=1, keep_checkpoints=1, keep_best=0)
    _validated(none, monkeypatch, values)
    none.fit()
    assert _steps(none) == [8] and _targets(none) == ("step-000008", None)


def test_a_resumed_run_knows_the_best_loss(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {1: 4.0, 2: 2.0, 3: 3.5, 4: 3.0, 5: 2.5, 6: 2.6, 7: 1.0, 8: 3.1}
    first = trainer(validation_interval=1, keep_checkpoints=1)
    _validated(first, monkeypatch, values)
    first.train_loader.events = {4: [signal.SIGTERM]}
    first.fit()
    assert _steps(first) == [2, 4]
    second = trainer(validation_interval=1, keep_checkpoints=9)
    _validated(second, monkeypatch, values)
    second.fit()
    # 5 and 6 are no best ones.
    assert _steps(second) == [2, 4, 7, 8] and _targets(second) == ("step-000008", "step-000007")
    third = trainer(resume=str(second.run_dir / "checkpoints" / "step-000004"), validation_interval=None)
    _validated(third, monkeypatch, values)
    third.train_loader.events = {6: [signal.SIGTERM]}
    third.fit()
    assert _targets(third) == ("step-000006", "step-000002")  # Step 7 went aside with the line that was given up
