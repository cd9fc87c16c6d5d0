"""What a person sees of a run while it goes on: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from dataclasses import dataclass

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
WINDOW_STEPS = 50  # Rates and the time left are taken over this many steps


@dataclass(frozen=True)
class StepFacts:
    """One optimizer step over all processes.

    seconds: wall time of the step, data_wait: the part of it in which it waited for its data. tokens:
    positions that are not padding; frames, examples: how many of each.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    data_wait: float
    tokens: int
    frames: int
    examples: int
    skipped: int


class Console:
    """Shows the progress of `total_steps` steps, of which `done` were done before."""

    def __init__(self, total_steps: int, done: int) -> None:
        self._total = total_steps
        self._window: deque[StepFacts] = deque(maxlen=WINDOW_STEPS)
        self._last_line = 0.0
        self._bar = None
        # A pseudo-terminal that nobody gave a size (containers, CI) shows no bar at all.
        if sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0:
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} {desc}"
            self._bar = tqdm(total=total_steps, initial=done, bar_format=layout, dynamic_ncols=True, leave=False)

    def update(self, facts: StepFacts, mean_loss: float) -> None:
        """Take note of a step; `mean_loss` is the one shown."""
        self._window.append(facts)
        text = self._describe(facts, mean_loss)
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last_line >= LINE_SECONDS or facts.step == self._total:
            self._last_line = time.monotonic()
            log.info(f"step {facts.step:>{len(str(self._total))}}/{self._total}  {text}")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()

    def _describe(self, facts: StepFacts, mean_loss: float) -> str:
        seconds = max(sum(f.seconds for f in self._window), 1e-9)
        tokens, frames = (sum(getattr(f, name) for f in self._window) / seconds for name in ("tokens", "frames"))
        wait = sum(f.data_wait for f in self._window) / seconds
        left = (self._total - facts.step) * seconds / len(self._window)
        parts = [
            f"epoch {facts.epoch + 1}",
            f"loss {mean_loss:.4f}",
            f"lr {facts.learning_rate:.1e}",
            f"grad {facts.grad_norm:.2f}",
            f"{short(tokens)} tok/s",
            f"{short(frames)} frames/s",
            f"data wait {wait:.0%}",
            f"{facts.skipped} skipped" if facts.skipped else "",
            f"{duration(left)} left",
        ]
        return "  ".join(part for part in parts if part)


def short(value: float) -> str:
    """A number for people: 950, 12.3k, 4.5M."""
    for unit in ("", "k", "M", "B"):
        if abs(value) < 999.5 or unit == "B":
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """`3:07` minutes, `2:03:07` hours."""
    whole = round(seconds)
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
