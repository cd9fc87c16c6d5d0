"""The report's drawings: how many clusters are how large and how alike, and where their videos lie."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#1d2430", "#5b6676", "#e3e7ed"
FOUND, CHANCE = "#2563c9", "#b9c1cd"
KIND_COLOURS = {"best": "#1a7f4b", "median": "#e07b1a", "worst": "#c22f36"}
DPI = 160


@dataclass(frozen=True)
class Shown:
    """A cluster that the page shows and where its videos lie on the map, float64 [L, 2]."""

    kind: str
    places: NDArray[np.float64]


def sizes_png(sizes: NDArray[np.int64]) -> bytes:
    """Clusters by number of videos."""
    figure, axes = _figure(5.2, 3.0)
    values, counts = np.unique(sizes, return_counts=True)
    if len(values) <= 24:
        bars = axes.bar(np.arange(len(values)), counts, color=FOUND, width=0.6)
        axes.set_xticks(np.arange(len(values)), [str(v) for v in values])
        axes.bar_label(bars, [f"{c:,}" for c in counts], color=SOFT, fontsize=8, padding=2)
        axes.set_xlim(-1.2, len(values) + 0.2)
        axes.margins(y=0.15)
    else:
        axes.hist(sizes, bins=24, color=FOUND)
    axes.set_xlabel("videos in the cluster")
    axes.set_ylabel("clusters")
    return _png(figure)


def cohesion_png(found: NDArray[np.float64], chance: NDArray[np.float64], bound: float | None) -> bytes:
    """Clusters by cohesion, beside those of random clusters; a line at the bound of the mean."""
    figure, axes = _figure(5.2, 3.0)
    low = min(found.min(), chance.min())
    high = max(found.max(), chance.max(), bound or -1.0)
    edges = np.linspace(low, max(high, low + 1e-3), 49)
    axes.hist(chance, bins=edges, color=CHANCE, label=f"random, mean {chance.mean():.3f}")
    axes.hist(found, bins=edges, color=FOUND, alpha=0.85, label=f"these, mean {found.mean():.3f}")
    if bound is not None:
        axes.axvline(bound, color=INK, lw=1, ls=(0, (4, 3)), label=f"bound of the mean, about {bound:.3f}")
    axes.set_xlabel("cohesion (mean cosine of the videos to their mean)")
    axes.set_ylabel("clusters")
    axes.margins(y=0.3)
    axes.legend(frameon=False, fontsize=8, labelcolor=SOFT, loc="upper left")
    return _png(figure)


def map_png(places: NDArray[np.float64], worth: NDArray[np.float64], shown: list[Shown]) -> bytes:
    """A sample of videos, float64 [n, 2], coloured by the cohesion of their cluster [n]; shown clusters are ringed."""
    figure, axes = _figure(10.6, 5.4)
    # A few odd clusters must not take all the colours.
    low, high = np.percentile(worth, (5, 95))
    dots = axes.scatter(*places.T, c=worth, s=9, cmap="viridis", vmin=low, vmax=high, alpha=0.75, linewidths=0)
    told: set[str] = set()
    for cluster in shown:
        label = "" if cluster.kind in told else f"{cluster.kind} clusters"
        told.add(cluster.kind)
        centre = cluster.places.mean(axis=0)
        for place in cluster.places:
            axes.plot(*zip(centre, place, strict=True), color=KIND_COLOURS[cluster.kind], lw=0.7, alpha=0.6)
        axes.scatter(
            *cluster.places.T,
            s=34,
            facecolors="none",
            edgecolors=KIND_COLOURS[cluster.kind],
            lw=1.4,
            label=label or None,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.legend(frameon=False, fontsize=9, labelcolor=SOFT, loc="best")
    bar = figure.colorbar(dots, ax=axes, pad=0.015, fraction=0.03, extend="both")
    bar.set_label("cohesion of the video's cluster", color=SOFT, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=SOFT)
    bar.outline.set_visible(False)
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Not pyplot: it would choose a backend and keep every figure alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=SOFT, labelsize=8, length=0)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=SOFT, fontsize=9)
    axes.yaxis.label.set(color=SOFT, fontsize=9)
    return figure, axes


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # No date and no version inside: the same clusters give the same bytes.
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()
