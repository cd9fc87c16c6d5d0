"""The loss curve of a run, as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 1500
WINDOW_SHARE = 0.02  # of the run: the width of the moving mean
LOG_SCALE_FROM = 30.0  # highest over lowest loss from which a linear scale would flatten the end of the curve
# Stand-ins that matplotlib accepts; the finished SVG refers to the page's variables instead, so it follows dark mode.
_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--faint)", "#030303": "var(--one)", "#040404": "var(--two)"}
_INK, _FAINT, _ONE, _TWO = _COLOURS


@dataclass
class Series:
    """A value by step."""

    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)


def moving_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the last `window` values at each place (of all so far at the start), same length."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)


def loss_svg(loss: Series, validation: Series) -> str:
    """An <svg> element: the loss of each step, its moving mean, and the validation loss. `loss` is not empty."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    steps, values = np.array(loss.steps), np.array(loss.values)
    mean = moving_mean(values, max(1, int(len(values) * WINDOW_SHARE)))
    keep = np.unique(np.linspace(0, len(steps) - 1, min(MAX_POINTS, len(steps))).astype(int))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prismatic", "font.family": "sans-serif"}):
        figure = Figure(figsize=(9.0, 3.4))
        axes = figure.add_axes((0.07, 0.14, 0.915, 0.8))
        axes.plot(steps[keep], values[keep], color=_FAINT, linewidth=0.8, label="loss of a step")
        axes.plot(steps[keep], mean[keep], color=_ONE, linewidth=2.0, label="moving mean")
        if validation.steps:
            axes.plot(
                validation.steps, validation.values, color=_TWO, linewidth=1.5, marker="o", markersize=4.5,
                label="validation",
            )  # fmt: skip
        every = np.concatenate([values, validation.values])
        positive = every[np.isfinite(every) & (every > 0)]
        if len(positive) and positive.max() / positive.min() > LOG_SCALE_FROM:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
        axes.set_xlabel("step", color=_INK)
        axes.tick_params(colors=_INK, length=3, width=0.6, which="both")
        axes.grid(color=_FAINT, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_FAINT)
        axes.margins(x=0.01)
        axes.legend(frameon=False, labelcolor=_INK, loc="upper right", ncols=3)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    # Inside a page the drawing needs no namespaces, and its metadata is nothing but links.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    for stand_in, variable in _COLOURS.items():
        svg = svg.replace(stand_in, variable)
    return svg
