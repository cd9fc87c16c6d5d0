"""`report.html` while a run goes on: written by rank 0 now and then, and at the end.

The page costs some hundredths of a second. It is written at most so often that this is less than a thousandth of the
run's time, and never more often than a person looks.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prismatic.report.history import History
from prismatic.report.run_report import STATE, write_run_report, write_whole
from prismatic.report.tables import SkipReasons

log = logging.getLogger(__name__)

MIN_SECONDS = 15.0
COST_SHARE = 1e-3  # of the run's time

State = Literal["running", "finished", "stopped", "failed"]
Writer = Callable[[Path], object]


class LiveReport:
    """Keeps the page of a run folder up to date. A folder without config.yaml is no run folder and gets none.

    history: the run's curves. final: writes the page after the last step, with what evaluations add to it; None for
    the page as it is while the run goes on.
    """

    def __init__(self, run_dir: Path, history: History, total_steps: int, final: Writer | None = None) -> None:
        self._run_dir, self._history, self._total, self._final = run_dir, history, total_steps, final
        self._skips = SkipReasons(run_dir / "skipped.jsonl")
        self._due = 0.0
        self._complained = False
        self._enabled = (run_dir / "config.yaml").is_file()

    def tick(self, step: int, seconds_left: float | None) -> None:
        """After step number `step`: write the page if it is time to."""
        if time.monotonic() >= self._due:
            self._write("running", step, seconds_left, "")

    def close(self, state: State, step: int, message: str = "") -> None:
        """Write the page for the last time. message: why the run ended before its end."""
        self._write(state, step, None, message)

    def _write(self, state: State, step: int, seconds_left: float | None, message: str) -> None:
        if not self._enabled:
            return
        began = time.perf_counter()
        facts = {
            "state": state,
            "step": step,
            "total_steps": self._total,
            "seconds_left": seconds_left,
            "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "message": message,
        }
        try:
            write_whole(self._run_dir / STATE, json.dumps(facts) + "\n")
            if state == "running" or self._final is None:
                write_run_report(self._run_dir, history=self._history, skips=self._skips)
            else:
                self._final(self._run_dir)
        except (OSError, ValueError) as error:
            # A page is never worth a run: a full disk, or a log of another program under this run's name.
            if state != "running" or not self._complained:
                reason = getattr(error, "strerror", None) or error
                log.warning(f"{self._run_dir}/report.html could not be written ({reason}); the run goes on without it")
            self._complained = True
        cost = time.perf_counter() - began
        self._due = time.monotonic() + max(MIN_SECONDS, cost / COST_SHARE)
