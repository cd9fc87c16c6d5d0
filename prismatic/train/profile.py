"""`--profile '[10,12]'`: a trace of some steps by PyTorch's profiler, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prismatic.dist import World

log = logging.getLogger(__name__)

FOLDER = "profile"
ROWS = 12  # of the table in the log


class StepProfiler:
    """Traces the steps from the first to the last of `steps` (counted from 1), on every process.

    Files: run_dir/profile/steps-000010-000012-rank0.json.gz. steps: empty for none, or (first, last).
    """

    def __init__(self, run_dir: Path, steps: Sequence[int], world: World) -> None:
        self._folder, self._world = run_dir / FOLDER, world
        self._first, self._last = (steps[0], steps[-1]) if steps else (0, -1)
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """Call before step number `step`; a run that resumes within the steps traces the rest of them."""
        if self._profiler is not None or not self._first <= step <= self._last:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._first = step
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.start()

    def after(self, step: int) -> None:
        """Call after step number `step`; writes the trace after the last one."""
        if self._profiler is not None and step >= self._last:
            self._finish(step)

    def close(self, step: int) -> None:
        """Write what was traced when a run ends before the last of the steps."""
        if self._profiler is not None:
            self._finish(step)

    def _finish(self, step: int) -> None:
        profiler, self._profiler = self._profiler, None
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        profiler.stop()
        path = self._folder / f"steps-{self._first:06d}-{step:06d}-rank{self._world.rank}.json.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(path))
        except OSError as error:
            log.warning(f"The trace could not be written to {path} ({error.strerror})")
            return
        by = "self_cuda_time_total" if self._world.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=44)
        log.info(f"Trace of steps {self._first} to {step}: {path} (open it in ui.perfetto.dev). Most time in:\n{table}")
