"""What a person sees of a run while it goes on: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
WINDOW_STEPS = 50  # Rates and the time left are taken over this many steps


@dataclass(frozen=True)
class StepFacts:
    """One optimizer step over all processes.

    seconds: wall time of the step, data_wait: the part of it in which it waited for its data (the slowest process did).
    tokens: positions that are not padding; frames, examples: how many of each. skipped: samples so far. positions: with
    padding. label_tokens: positions that are learned. learning_rates: of each group of weights. flops: useful ones, 0
    where they are not counted; devices: that shared them, peak: FLOP/s that one could do, None where that is not known.
    host_memory: bytes that this process holds, device_memory: the most that PyTorch held on its GPU, None without one.
    left_out: steps so far that were not taken.
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
    positions: int = 0
    label_tokens: int = 0
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0
    devices: int = 1
    peak: float | None = None
    host_memory: int | None = None
    device_memory: int | None = None
    left_out: int = 0

    @property
    def device_flops(self) -> float | None:
        """Useful FLOP/s of one device; None where FLOPs are not counted."""
        return self.flops / max(self.seconds, 1e-9) / self.devices if self.flops else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: the share of a device's peak that went into useful FLOPs."""
        return self.device_flops / self.peak if self.device_flops and self.peak else None


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

    @property
    def seconds_left(self) -> float | None:
        """About how long the rest of the run takes; None before the first step."""
        if not self._window:
            return None
        seconds = sum(f.seconds for f in self._window) / len(self._window)
        return (self._total - self._window[-1].step) * seconds

    @property
    def mfu(self) -> float | None:
        """MFU over the last steps; None where it is not known."""
        shares = [f.mfu for f in self._window if f.mfu is not None]
        return sum(shares) / len(shares) if shares else None

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()

    def _describe(self, facts: StepFacts, mean_loss: float) -> str:
        seconds = max(sum(f.seconds for f in self._window), 1e-9)
        tokens, frames = (sum(getattr(f, name) for f in self._window) / seconds for name in ("tokens", "frames"))
        wait = sum(f.data_wait for f in self._window) / seconds
        left = self.seconds_left or 0.0
        parts = [
            f"epoch {facts.epoch + 1}",
            f"loss {mean_loss:.4f}",
            f"lr {facts.learning_rate:.1e}",
            f"grad {facts.grad_norm:.2f}",
            f"{short(tokens)} tok/s",
            f"{short(frames)} frames/s",
            f"MFU {self.mfu:.0%}" if self.mfu is not None else "",
            f"data wait {wait:.0%}",
            f"{facts.skipped} skipped" if facts.skipped else "",
            f"{facts.left_out} steps left out" if facts.left_out else "",
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
