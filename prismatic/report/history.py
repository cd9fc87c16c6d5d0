"""The rows of a run as curves of a bounded number of points, however many steps there are."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CAPACITY = 500  # points of a curve, at the least, once there were so many: what a drawing as wide as a page can show


@dataclass
class Curve:
    """A value by step. Points stand for 1, 2, 4, ... values each, so that there are never more than 2 CAPACITY of them.

    steps: the last step of each point. means, lows, highs: of its values. last: the newest value. best: the lowest.
    """

    last: float | None = None
    best: float | None = None
    stride: int = 1
    # Arrays: a list of floats takes four times as much, and a run has twenty curves. As large from the first point on
    # as they ever are: what grows and shrinks with the steps would look like a leak, and hide one.
    _steps: array[int] = field(default_factory=lambda: array("q", bytes(8 * 2 * CAPACITY)), repr=False)
    _values: tuple[array[float], ...] = field(
        default_factory=lambda: tuple(array("d", bytes(8 * 2 * CAPACITY)) for _ in range(3)), repr=False
    )
    _count: int = 0
    _open: int = 0  # values in the last point, fewer than `stride` while it fills

    @property
    def steps(self) -> array[int]:
        return self._steps[: self._count]

    @property
    def means(self) -> array[float]:
        return self._values[0][: self._count]

    @property
    def lows(self) -> array[float]:
        return self._values[1][: self._count]

    @property
    def highs(self) -> array[float]:
        return self._values[2][: self._count]

    def add(self, step: int, value: float) -> None:
        """Add the value of a step that comes after all before it; what is not finite leaves no point."""
        if not math.isfinite(value):
            return
        self.last = value
        self.best = value if self.best is None else min(self.best, value)
        means, lows, highs = self._values
        if 0 < self._open < self.stride:
            at, count = self._count - 1, self._open
            means[at] = (means[at] * count + value) / (count + 1)
            lows[at], highs[at] = min(lows[at], value), max(highs[at], value)
            self._open += 1
        else:
            if self._count == 2 * CAPACITY:
                self._halve()
            at = self._count
            means[at] = lows[at] = highs[at] = value
            self._count, self._open = at + 1, 1
        self._steps[at] = step

    def _halve(self) -> None:
        # Whole points only stand here: 2 CAPACITY of them is even.
        means, lows, highs = self._values
        for at in range(CAPACITY):
            left, right = 2 * at, 2 * at + 1
            self._steps[at] = self._steps[right]
            means[at] = (means[left] + means[right]) / 2
            lows[at], highs[at] = min(lows[left], lows[right]), max(highs[left], highs[right])
        self._count = CAPACITY
        self.stride *= 2


def smoothed(curve: Curve, share: float) -> Curve:
    """The moving mean of a curve over the last `share` of its points (of all so far at the start), a few at least."""
    points = curve.means
    window = max(1, int(len(points) * share), min(8, len(points) // 8))
    total, sums, smooth = 0.0, [0.0], Curve()
    for end, (step, value) in enumerate(zip(curve.steps, points, strict=True), start=1):
        total += value
        sums.append(total)
        smooth.add(step, (total - sums[max(0, end - window)]) / min(end, window))
    smooth.last, smooth.best = curve.last, curve.best
    return smooth


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
