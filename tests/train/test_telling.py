"""What a run tells as it goes on: its page at any moment, traces of chosen steps, which side it waits for."""

from __future__ import annotations

import gzip
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prismatic.report.history import History
from prismatic.report.run_report import STATE
from prismatic.train import live_report
from prismatic.train.errors import TrainingError
from prismatic.train.limits import WaitAccount
from prismatic.train.live_report import LiveReport
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]


def _folder(run: Trainer) -> Trainer:
    (run.run_dir / "config.yaml").write_text("stage: finetune\nmodel: {num_frames: 8}\n")
    return run


def _state(run_dir: Path) -> dict:
    return json.loads((run_dir / STATE).read_text())


def test_the_page_is_there_while_the_run_goes_on(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_report, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(live_report, "COST_SHARE", 1e9)
    run, seen = _folder(trainer()), []
    run.optimizer.register_step_post_hook(lambda *_: seen.append((run.run_dir / "report.html").read_text()))
    run.train_loader.broken = {3}
    run.skips._max_share = 1.0
    run.fit()
    assert len(seen) == 8 and all("running" in page and 'http-equiv="refresh"' in page for page in seen)
    assert "<svg" not in seen[0] and "<svg" in seen[-1] and "min</b>" not in seen[0]
    page = (run.run_dir / "report.html").read_text()
    assert ">finished</span>" in page and "refresh" not in page and "step 8 of 8" in page
    assert "it is empty" in page and "row-3" in page and "To get this run again" in page
    assert not list(run.run_dir.glob(".*partial"))


def test_stopped_and_failed_runs_say_so(trainer: Make) -> None:
    stopped = _folder(trainer())
    stopped.train_loader.events = {2: [15]}
    assert stopped.fit() is signal.SIGTERM
    assert _state(stopped.run_dir)["state"] == "stopped" and _state(stopped.run_dir)["step"] == 2
    failed = _folder(trainer(run_id="failed"))
    failed.train_loader.unlabelled = True
    with pytest.raises(TrainingError):
        failed.fit()
    assert "none of its samples" in _state(failed.run_dir)["message"]
    assert "none of its samples" in (failed.run_dir / "report.html").read_text()


def test_writing_the_page_takes_less_than_a_thousandth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("stage: finetune\n")
    clock, cost = [100.0], 0.05
    monkeypatch.setattr(live_report.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live_report.time, "perf_counter", lambda: clock[0])
    writes = []

    def write(*_args: object, **_kwargs: object) -> None:
        clock[0] += cost
        writes.append(clock[0])

    monkeypatch.setattr(live_report, "write_run_report", write)
    page = LiveReport(tmp_path, History(), 10_000)
    for step in range(10_000):
        clock[0] += 0.1
        page.tick(step, None)
    assert 10 < len(writes) and cost * len(writes) < 1.2e-3 * (clock[0] - 100)


def test_a_page_of_a_hundred_thousand_steps_is_small_and_quick(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("stage: finetune\n")
    history = History()
    names = ("Loss (Raw)", "Learning Rate", "Gradient Norm", "Tokens/s", "Step Time", "Data Wait", "Host Memory")
    for step in range(1, 100_001):
        history.add({"Finetune/Step": step, **{f"Finetune/{name}": 2 + (step * 7919 % 101) / 100 for name in names}})
    page = LiveReport(tmp_path, history, 100_000)
    page.tick(100_000, 60.0)
    began = time.process_time()
    page._due = 0.0
    page.tick(100_000, 60.0)
    assert time.process_time() - began < 0.5
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_a_full_disk_stops_no_run(
    trainer: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live_report, "write_run_report", full)
    assert _folder(trainer()).fit() is None
    assert caplog.text.count("report.html could not be written") == 2  # once while it runs, and at the end


def test_traces_of_chosen_steps(trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="prismatic"):
        run = trainer(profile=(3, 4))
        run.fit()
    (path,) = (run.run_dir / "profile").iterdir()
    assert path.name == "steps-000003-000004-rank0.json.gz"
    names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names or "aten::addmm" in names
    assert f"Trace of steps 3 to 4: {path}" in caplog.text and "Self CPU" in caplog.text


def test_a_trace_that_the_run_does_not_live_to_see_is_written_at_its_end(trainer: Make) -> None:
    run = trainer(profile=(7, 100))
    run.fit()
    assert [p.name for p in (run.run_dir / "profile").iterdir()] == ["steps-000007-000008-rank0.json.gz"]


def test_which_side_is_the_limit_is_told_once_and_again_when_it_changes() -> None:
    waits, told = WaitAccount(), []
    for step in range(400):
        waits.add(1.0, 0.0 if step < 100 else 0.6)
        if waits.is_news():
            told.append((step + 1, waits.verdict(2, 8)))
    assert [step for step, _ in told] == [20, pytest.approx(115, abs=15)]
    assert "computing is the limit" in told[0][1] and "raise --dataset.num_workers" in told[1][1]
    full = waits.verdict(8, 8)
    assert "on 8 cores" in full and "--dataset.feature_cache" in full
    assert "--dataset.feature_cache" not in waits.verdict(8, 8, cacheable=False)
