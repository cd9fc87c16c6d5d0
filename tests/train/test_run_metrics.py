"""Rows of metrics: their keys, their survival of full disks and kills, and a tracker that must not be in the way."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prismatic.train import wandb_tracker
from prismatic.train.console import Console, StepFacts, duration, short
from prismatic.train.jsonl import RowFile, read_rows
from prismatic.train.metrics import Metrics
from prismatic.train.trainer import Trainer
from prismatic.train.wandb_tracker import WandbTracker


def _facts(step: int = 1) -> StepFacts:
    return StepFacts(step, 0, 2.5, 1e-3, 0.5, 2.0, 0.5, 400, 64, 16, 0)


def _metrics(tmp_path: Path, *trackers: str) -> Metrics:
    return Metrics(tmp_path, "run", stage="full-finetune", trackers=trackers, hparams={"seed": 7})


def test_keys_of_the_older_systems_and_ours(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path, "jsonl")
    metrics.start(0, 10)
    metrics.log_step(_facts(), 3.0)
    metrics.log_validation(1, 1.5, 70)
    metrics.close()
    assert json.loads((tmp_path / "run-metrics.jsonl").read_text()) == {"run_id": "run", "hparams": {"seed": 7}}
    step, validation = (json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines())
    assert step == {
        "Full-finetune/Step": 1,
        "Full-finetune/Epoch": 0,
        "Full-finetune/Loss": 3.0,
        "Full-finetune/Loss (Raw)": 2.5,
        "Full-finetune/Learning Rate": 1e-3,
        "Full-finetune/Step Time": 2.0,
        "Full-finetune/Gradient Norm": 0.5,
        "Full-finetune/Tokens/s": 200.0,
        "Full-finetune/Frames/s": 32.0,
        "Full-finetune/Examples/s": 8.0,
        "Full-finetune/Data Wait": 0.5,
        "Full-finetune/Data Wait Share": 0.25,
        "Full-finetune/Skipped": 0,
        "Full-finetune/Skipped Steps": 0,
    }
    assert validation == {
        "Full-finetune/Step": 1,
        "Full-finetune/Validation Loss": 1.5,
        "Full-finetune/Validation Tokens": 70,
    }


def test_resuming_cuts_later_rows_and_a_half_one(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path, "jsonl")
    metrics.start(0, 10)
    for step in range(1, 6):
        metrics.log_step(_facts(step), 3.0)
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"Full-finetune/Step": 2, "Full')
    again = _metrics(tmp_path, "jsonl")
    again.start(3, 10)
    again.log_step(_facts(4), 3.0)
    assert [row["Full-finetune/Step"] for row in read_rows(tmp_path / "run.jsonl")] == [1, 2, 3, 4]
    new = _metrics(tmp_path, "jsonl")
    new.start(0, 10)
    assert list(read_rows(tmp_path / "run.jsonl")) == []


def test_smoothed_loss_is_the_mean_of_the_last_128(trainer: Callable[..., Trainer]) -> None:
    run = trainer()
    run.losses = [float(i) for i in range(200)][-127:]
    run.note_loss(StepFacts(1, 0, 1000.0, 0, 0, 1, 0, 1, 1, 1, 0))
    run.note_loss(StepFacts(2, 0, 2000.0, 0, 0, 1, 0, 1, 1, 1, 0))
    assert run.mean_loss == pytest.approx((sum(range(74, 200)) + 3000) / 128)


def test_no_token_in_any_file(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer(hf_token="hf_secretsecret").fit()
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"secretsecret" not in path.read_bytes(), path


def test_rows_wait_while_the_disk_is_full(
    tmp_path: Path, file_limit: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    rows.append({"n": 0})
    with file_limit(20):  # Room for one row and a half
        for n in (1, 2, 3):
            rows.append({"n": n, "text": "x" * 10})
        assert list(read_rows(rows.path)) == [{"n": 0}] and rows.path.read_bytes().endswith(b"\n")
        assert rows.waiting == 3
    rows.append({"n": 4})
    assert [row["n"] for row in read_rows(rows.path)] == [0, 1, 2, 3, 4] and rows.waiting == 0
    assert caplog.text.count("its rows wait in memory") == 1


def test_wandb_records_offline(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path, "wandb")
    metrics.start(0, 10)
    metrics.log_step(_facts(), 3.0)
    metrics.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert not (tmp_path / "run.jsonl").exists()


@pytest.mark.parametrize("how", ["refused", "silent", "behind a dead proxy", "a gateway's answer"])
def test_unreachable_wandb_neither_stops_nor_delays_a_run(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with _service(how) as port:
        if how == "behind a dead proxy":
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}" if "proxy" not in how else "http://wandb.test")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        tracker = WandbTracker(tmp_path, "run", {}, "prismatic", None)
        began = time.monotonic()
        for step in range(100):
            tracker.log({"loss": 1.0}, step)
        assert time.monotonic() - began < 1.0
        while not tracker._online:
            time.sleep(0.01)
        began = time.monotonic()
        tracker.close()
        assert time.monotonic() - began < 1.0
        assert "does not answer" in caplog.text


@contextmanager
def _service(how: str) -> Iterator[int]:
    """The port of a service that is not there, that takes connections and says nothing, or that is a gateway."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if how == "silent":
            listening.listen(50)
        if how == "a gateway's answer":
            listening.listen(50)
            threading.Thread(target=_refuse, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1]


def _refuse(listening: socket.socket) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


def test_a_run_that_goes_on_is_the_same_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr("wandb.init", lambda **settings: given.append(settings) or _NoRun())
    for _ in range(2):
        tracker = WandbTracker(tmp_path, "run", {}, "prismatic", None)
        tracker.log({"loss": 1.0}, 1)
        tracker.close()
    assert given[0]["id"] == given[1]["id"] and len(given[0]["id"]) == 12
    assert all(settings["resume"] == "allow" for settings in given)


class _NoRun:
    def log(self, row: dict, step: int) -> None: ...

    def finish(self) -> None: ...


def test_a_key_is_looked_for_where_wandb_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not wandb_tracker._has_credentials()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_tracker._has_credentials()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert not wandb_tracker._has_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_tracker._has_credentials()


def test_missing_wandb_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = WandbTracker(tmp_path, "run", {}, "prismatic", None)
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert "wandb stopped recording" in caplog.text and "jsonl files have everything" in caplog.text


def test_console_line_has_rates_over_the_last_steps(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(total_steps=400, done=0)
    with caplog.at_level("INFO", logger="prismatic"):
        console.update(_facts(100), 3.0)
    assert (
        "step 100/400  epoch 1  loss 3.0000  lr 1.0e-03  grad 0.50  200 tok/s  32 frames/s  data wait 25%"
        in caplog.text
    )
    assert "10:00 left" in caplog.text


def test_numbers_for_people() -> None:
    assert [short(v) for v in (0, 999, 999.6, 12_345, 7e9, 5e12)] == ["0", "999", "1.0k", "12.3k", "7.0B", "5000.0B"]
    assert [duration(s) for s in (0, 59.6, 187, 7387)] == ["0:00", "1:00", "3:07", "2:03:07"]


@pytest.mark.parametrize(("columns", "bar"), [(100, True), (0, False)])
def test_a_terminal_with_a_size_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, columns: int, bar: bool
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal, caplog.at_level("INFO", logger="prismatic"):
        monkeypatch.setattr(sys, "stderr", terminal)
        console = Console(total_steps=4, done=1)
        console.update(_facts(2), 3.0)
        console.close()
        monkeypatch.undo()
        os.set_blocking(ours, False)
        shown = os.read(ours, 10_000).decode() if bar else ""
    os.close(ours)
    assert ("25%" in shown and "2/4" not in caplog.text) if bar else "step 2/4" in caplog.text
