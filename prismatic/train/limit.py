"""Which side limits a run: the device that computes, or the data that it waits for, and what helps."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from prismatic.train.console import StepFacts

if TYPE_CHECKING:
    from prismatic.conf.run import PretrainConfig

log = logging.getLogger(__name__)

WINDOW_STEPS = 50
FIRST_STEPS = 20  # Before so many the reading processes are still filling up
WAIT_SHARE = 0.10  # of a step: below it nothing is said
QUIET_SECONDS = 1800.0  # between two notes


class LimitNote:
    """Says when the data keeps the device waiting. local_world_size: processes that share this machine's cores."""

    def __init__(self, cfg: PretrainConfig, local_world_size: int) -> None:
        self._cfg, self._processes = cfg, max(1, local_world_size)
        self._window: deque[StepFacts] = deque(maxlen=WINDOW_STEPS)
        self._seen = 0
        self._quiet_until = 0.0
        self._seconds = self._waited = 0.0

    def add(self, facts: StepFacts) -> None:
        """Take note of a step, and log a note when the data is the limit."""
        self._seen += 1
        self._window.append(facts)
        if self._seen > 1:  # the first step waits for the first decoded frames, whatever comes after
            self._seconds += facts.seconds
            self._waited += facts.data_wait
        share = self._share()
        if self._seen < FIRST_STEPS or share < WAIT_SHARE or time.monotonic() < self._quiet_until:
            return
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        log.warning(
            f"The data is the limit: {share:.0%} of the last {len(self._window)} steps went into waiting for it. "
            f"{self._advice()}"
        )

    def summary(self) -> str:
        """Which side was the limit over the whole run, as a clause; empty for a run of a single step."""
        if not self._seconds:
            return ""
        share = self._waited / self._seconds
        return f"{'data' if share >= WAIT_SHARE else 'compute'} was the limit (data wait {share:.1%})"

    def _share(self) -> float:
        return sum(f.data_wait for f in self._window) / max(1e-9, sum(f.seconds for f in self._window))

    def _advice(self) -> str:
        data, cores = self._cfg.dataset, _cores()
        workers = cores // self._processes
        ways = []
        if workers > data.num_workers:
            ways.append(f"--dataset.num_workers {workers} (now {data.num_workers}; {cores} cores here)")
        frozen = self._cfg.stage != "full-finetune"
        if frozen and not data.augmentations and getattr(data, "feature_cache", "") is None:
            ways.append("--dataset.feature_cache DIR, which reads and encodes each clip once")
        ways.append("frames taken once with `scripts/webvid.py extract --format shards`")
        if self._cfg.model.num_frames > 1:
            ways.append(f"fewer frames than --model.num_frames {self._cfg.model.num_frames}")
        return "What helps: " + ", or ".join(ways)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
