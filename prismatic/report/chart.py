"""Line charts as SVG, drawn by hand: they take their colours from the page around them, so they follow dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from prismatic.report.history import Curve

LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 26  # margins, pixels
WIDE, HALF = 1000, 484  # widths of a drawing that fills a page or half of it, so that a pixel of it is one of the page
LOG_SCALE_FROM = 30.0  # highest over lowest value from which a linear scale would flatten the end of the curve
COLOURS = ("one", "two", "three", "four", "five")  # variables of the page's style


@dataclass(frozen=True)
class Line:
    """A curve in a chart. colour: a variable of the page's style. band: also the lowest and highest of what each point
    stands for. dots: few, far apart.
    """

    name: str
    curve: Curve
    colour: str = COLOURS[0]
    band: bool = False
    dots: bool = False


@dataclass
class _Scale:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, self.low)), math.log10(low), math.log10(high)
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


def line_chart(
    lines: Sequence[Line],
    *,
    width: int = WIDE,
    height: int = 260,
    percent: bool = False,
    from_zero: bool = False,
    log: bool | None = None,
    marks: Sequence[int] = (),
) -> str:
    """A list of names and an <svg> of some curves over their steps; "" when none has a point.

    percent: values are shares. from_zero: the scale begins there. log: None for a logarithmic scale where values differ
    much. marks: steps at which a thin line stands (loss spikes).
    """
    lines = [line for line in lines if line.curve.steps]
    if not lines:
        return ""
    values = [v for line in lines for v in (line.curve.lows + line.curve.highs if line.band else line.curve.means)]
    steps = [step for line in lines for step in line.curve.steps]
    x = _linear(
        0 if min(steps) < 0.1 * max(steps) else min(steps), max(steps), LEFT, width - RIGHT, width // 120, whole=True
    )
    y = _value_scale(values, height, percent=percent, from_zero=from_zero, log=log)
    parts = [_grid(x, y, width, height, percent)]
    for step in marks:
        if x.low <= step <= x.high:
            parts.append(f'<path class="mark" d="M{x(step):.1f} {TOP}V{height - BOTTOM}"/>')
    parts += [_line(line, x, y) for line in lines]
    names = ", ".join(line.name for line in lines)
    return (
        _legend(lines)
        + f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(names)}">'
        + "".join(parts)
        + "</svg>"
    )


def _line(line: Line, x: _Scale, y: _Scale) -> str:
    curve, colour = line.curve, f"var(--{line.colour})"
    points = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(curve.steps, curve.means, strict=True)]
    parts = []
    if line.band and curve.stride > 1:
        over = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(curve.steps, curve.highs, strict=True)]
        under = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(curve.steps, curve.lows, strict=True)]
        parts.append(f'<path class="band" style="fill: {colour}" d="M{"L".join(over)}L{"L".join(under[::-1])}Z"/>')
    parts.append(f'<path class="line" style="stroke: {colour}" d="M{"L".join(points)}"/>')
    if line.dots or len(points) == 1:
        for step, value, point in zip(curve.steps, curve.means, points, strict=True):
            left, top = point.split()
            title = f"<title>step {step:,}: {number_text(value)}</title>"
            parts.append(f'<circle style="fill: {colour}" cx="{left}" cy="{top}" r="3.2">{title}</circle>')
    return "".join(parts)


def _grid(x: _Scale, y: _Scale, width: int, height: int, percent: bool) -> str:
    parts = []
    for tick in y.ticks:
        at = y(tick)
        text = f"{100 * tick:g}%" if percent else number_text(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>')
    for tick in x.ticks:
        anchor = "end" if x(tick) > width - 40 else "middle"
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="{anchor}">{number_text(tick)}</text>'
        )
    return "".join(parts)


def _legend(lines: Sequence[Line]) -> str:
    """Names beside their colours, as a list that wraps; none for a single line, which the title names."""
    if len(lines) < 2:
        return ""
    names = "".join(f'<li style="--c: var(--{line.colour})">{escape(line.name)}</li>' for line in lines)
    return f'<ul class="legend">{names}</ul>'


def _value_scale(values: Sequence[float], height: int, *, percent: bool, from_zero: bool, log: bool | None) -> _Scale:
    low, high = min(values), max(values)
    positive = [value for value in values if value > 0]
    if log is None:
        log = bool(positive) and not percent and not from_zero and max(positive) / min(positive) > LOG_SCALE_FROM
    bottom, top = height - BOTTOM, TOP
    if log and positive:
        low, high = min(positive), max(positive)
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [10.0**e * m for e in exponents for m in ((1, 2, 5) if len(exponents) < 4 else (1,))]
        return _Scale(low, high, bottom, top, True, [t for t in ticks if low <= t <= high] or [low, high])
    if from_zero or percent:
        low = min(low, 0.0)
    if high - low < 1e-12:
        pad = abs(high) * 0.1 or 1.0
        low, high = (low if from_zero or percent else low - pad), high + pad
    return _linear(low, high, bottom, top, 5)


def _linear(low: float, high: float, start: float, end: float, count: int, whole: bool = False) -> _Scale:
    """A scale with ticks at round numbers."""
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / count))
    step = next((step * m for m in (1, 2, 5) if span / (step * m) <= count), step * 10)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    ticks = [first * step + i * step for i in range(count + 2) if first * step + i * step <= high + 1e-9 * span]
    return _Scale(low, high, start, end, ticks=[0.0 if abs(t) < 1e-12 * span else t for t in ticks])


def number_text(value: float) -> str:
    """A number in few characters: 950, 12.5k, 0.0123, 2e-05."""
    size = abs(value)
    if size >= 9999.5:
        for unit, factor in (("k", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)):
            if size < 999.95 * factor or unit == "T":
                return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"
