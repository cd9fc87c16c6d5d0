"""The rows of a run as curves of a bounded number of points, however many steps there are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CAPACITY = 600  # points of a curve: what a drawing as wide as a page can show


@dataclass
class Curve:
    """A value by step. Points stand for 1, 2, 4, ... values each, so that there are never twice CAPACITY of them.

    steps: the last step of each point. means, lows, highs: of its values. last: the newest value. best: the lowest.
    """

    steps: list[int] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    last: float | None = None
    best: float | None = None
    stride: int = 1
    _open: int = 0  # values in the last point, fewer than `stride` while it fills

    def add(self, step: int, value: float) -> None:
        """Add the value of a step that comes after all before it; what is not finite leaves no point."""
        if not math.isfinite(value):
            return
        self.last = value
        self.best = value if self.best is None else min(self.best, value)
        if 0 < self._open < self.stride:
            count = self._open
            self.means[-1] = (self.means[-1] * count + value) / (count + 1)
            self.lows[-1], self.highs[-1] = min(self.lows[-1], value), max(self.highs[-1], value)
            self.steps[-1] = step
            self._open += 1
            return
        if len(self.steps) >= 2 * CAPACITY:
            self._halve()
        for points, new in ((self.means, value), (self.lows, value), (self.highs, value)):
            points.append(new)
        self.steps.append(step)
        self._open = 1

    def _halve(self) -> None:
        # Whole points only stand here: 2 CAPACITY of them is even.
        self.steps = self.steps[1::2]
        self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
        self.lows = [min(a, b) for a, b in zip(self.lows[::2], self.lows[1::2], strict=True)]
        self.highs = [max(a, b) for a, b in zip(self.highs[::2], self.highs[1::2], strict=True)]
        self.stride *= 2


def smoothed(curve: Curve, share: float) -> Curve:
    """The moving mean of a curve over the last `share` of its points (of all so far at the start), a few at least."""
    count = len(curve.means)
    window = max(1, int(count * share), min(8, count // 8))
    total, sums = 0.0, [0.0]
    for value in curve.means:
        total += value
        sums.append(total)
    means = [(sums[end] - sums[max(0, end - window)]) / min(end, window) for end in range(1, len(sums))]
    return Curve(curve.steps, means, means, means, curve.last, curve.best)


class History:
    """The curves of a run by the name of their value, without the stage in front ("Loss (Raw)")."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.step = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row of `<run_id>.jsonl`."""
        values = {key.partition("/")[2]: value for key, value in row.items()}
        step = values.pop("Step", None)
        if not isinstance(step, int | float):
            return
        self.step = max(self.step, int(step))
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self.curves.setdefault(name, Curve()).add(int(step), float(value))

    def curve(self, name: str) -> Curve:
        """The curve of a value; an empty one where there is none."""
        return self.curves.get(name, Curve())

    def last(self, name: str) -> float | None:
        """The newest value of a name."""
        return self.curve(name).last


def read_history(run_dir: Path) -> History:
    """The history of a run folder by its step log; an empty one when there is no log.

    Raises ValueError naming the line for a log that is not one; a last line that was cut off is left out.
    """
    history = History()
    index = run_dir / "run-metrics.jsonl"
    run_id = run_dir.name
    if index.is_file() and index.stat().st_size:
        run_id = json.loads(index.read_text(encoding="utf-8").splitlines()[0])["run_id"]
    path = run_dir / f"{run_id}.jsonl"
    if not path.is_file():
        return history
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                history.add(json.loads(line))
            except json.JSONDecodeError as error:
                if not line.endswith("\n"):
                    break
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return history
