"""Clusters of exactly L vectors that point the same way (or as unlike as can be), in memory linear in their number.

Vectors are peeled into clusters (`peel`). Then, PASSES times with other borders, clusters that would rather have each
other's members are put together and pairs are swapped (`swaps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from prismatic.webvid.cells import as_direction, cells_of_clusters, cut, likeness, regional_cells
from prismatic.webvid.peel import peel
from prismatic.webvid.quantised import PIECE, Rows, Vectors, at_length, cohesion, one_blas_thread, project, quantise
from prismatic.webvid.swaps import improve

__all__ = ["Space", "balanced_clusters", "cohesion", "diverse_clusters", "quantise"]

WHOLE = 131_072  # vectors, at most, among which the nearest are looked for everywhere
PEEL_CELL = 65_536  # vectors among which they are looked for where there are more
PASS_CELL = 16_384  # vectors among which clusters look for each other
SWAP_CELL = 512  # vectors that are swapped with each other: similarities of a cell take SWAP_CELL**2 float32 = 1 MB
FEWEST = 4  # clusters in such a cell, where their size allows
LARGEST_SWAP_CELL = 8192  # above it clusters stay as they were peeled
PASSES = 2


@dataclass(frozen=True)
class Space:
    """Similarity of two rows: the dot product of `near`, less that of `far` where there is one. Both [N, D].

    short: what stands for `near` where many are looked through, [N, d].
    """

    near: Vectors
    short: Vectors
    far: Vectors | None = None

    @property
    def wishes(self) -> Vectors:
        """What decides which clusters meet in a cell, where a wrong choice costs little: half of a projection."""
        return self.short if self.short is self.near else self.short[:, : self.short.shape[1] // 2]

    def among(self, rows: Rows) -> NDArray[np.float32]:
        """Similarities [n, n] of the rows to each other, whole numbers."""
        first = self.near[rows].astype(np.float32)
        similarity = first @ first.T
        if self.far is not None:
            second = self.far[rows].astype(np.float32)
            similarity -= second @ second.T
        return similarity

    def between(self, rows: Rows, others: Rows) -> NDArray[np.float32]:
        """Similarities [b, k] of each of the rows [b] to its own others [b, k]."""
        found = _dots(self.near, rows, others)
        return found if self.far is None else found - _dots(self.far, rows, others)


def _dots(vectors: Vectors, rows: Rows, others: Rows) -> NDArray[np.float32]:
    return (vectors[others].astype(np.float32) @ vectors[rows].astype(np.float32)[:, :, None])[:, :, 0]


@one_blas_thread
def balanced_clusters(
    vectors: Vectors, size: int, seed: int, far: Vectors | None = None, scratch: Path | None = None
) -> Rows:
    """Labels int64 [N]: 0, 1, ... on exactly `size` vectors each, -1 on the N mod size least like the mean of all.

    vectors: from `quantise`; N >= size. far: other vectors of the same rows, in which members of a cluster are to be
    unlike (of any width). Zero and equal vectors are clustered as any others. scratch: as for `quantise`.
    """
    assert len(vectors) >= size >= 1
    rng = np.random.default_rng(seed)
    space = Space(vectors, project(vectors, rng, scratch), far)
    rows = _without_remainder(vectors, size)
    with tqdm(total=len(rows) * (1 + PASSES), unit="video", desc="cluster") as bar:
        found = []
        for cell in regional_cells(space.short, rows, size, WHOLE if len(rows) <= WHOLE else PEEL_CELL, rng):
            found.append(peel(space, cell, size, rng))
            bar.update(len(cell))
        clusters = np.concatenate(found)
        if len(found) > 1:
            clusters = _again(space, clusters, rng)
        for _ in range(PASSES):
            clusters = _improving_pass(space, clusters, rng, bar)
    return _labels(clusters, len(vectors))


@one_blas_thread
def diverse_clusters(vectors: Vectors, size: int, seed: int) -> Rows:
    """As `balanced_clusters`, of vectors as unlike each other as can be; -1 is on a random N mod size.

    Neighbours are dealt to different clusters, then pairs are swapped within cells of random clusters.
    """
    assert len(vectors) >= size >= 1
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(vectors))[: len(vectors) // size * size])
    num_groups = len(rows) // size
    # Cells in order are neighbours: each cluster takes its members from `size` stretches far apart.
    order = np.concatenate(list(cut(vectors, rows, 1, SWAP_CELL, rng)))
    clusters = rng.permuted(order.reshape(size, num_groups), axis=1).T.copy()
    space = Space(vectors, vectors)
    with tqdm(total=len(rows) * PASSES, unit="video", desc="cluster") as bar:
        for _ in range(PASSES):
            shuffled = rng.permutation(num_groups)
            cap = _clusters_in_a_cell(size)
            for start in range(0, num_groups, cap) if cap else ():
                cell = shuffled[start : start + cap]
                members = clusters[cell].ravel()
                numbers = np.arange(len(members)).reshape(-1, size)
                improve(-space.among(members), numbers)
                clusters[cell] = members[numbers]
            bar.update(len(rows))
    return _labels(clusters, len(vectors))


def _again(space: Space, clusters: Rows, rng: np.random.Generator) -> Rows:
    """The clusters [G, size] with the worst of them, WHOLE vectors from everywhere, peeled once more: they are those
    whose nearest were beyond a border.
    """
    size = clusters.shape[1]
    order = np.argsort(_likeness_within(space, clusters), kind="stable")
    worst = np.sort(clusters[order[: WHOLE // size]].ravel())
    return np.concatenate([clusters[order[WHOLE // size :]], peel(space, worst, size, rng)])


def _likeness_within(space: Space, clusters: Rows) -> NDArray[np.float64]:
    """Sum of the similarities of the members of each cluster to each other, float64 [G], exact."""
    size = clusters.shape[1]
    step = max(1, PIECE // size)
    found = []
    for start in range(0, len(clusters), step):
        rows = clusters[start : start + step]
        sums = space.short[rows.ravel()].astype(np.float32).reshape(*rows.shape, -1).sum(axis=1)
        found.append(np.square(sums, dtype=np.float64).sum(axis=1))
    return np.concatenate(found)


def _improving_pass(space: Space, clusters: Rows, rng: np.random.Generator, bar: tqdm[None]) -> Rows:
    """The clusters [G, size] after swaps, in another order."""
    size = clusters.shape[1]
    cap = _clusters_in_a_cell(size)
    if not cap:
        bar.update(clusters.size)
        return clusters
    means = _means(space.short, clusters)
    done = []
    for numbers in regional_cells(means, np.arange(len(clusters)), 1, max(1, PASS_CELL // size), rng):
        region = clusters[numbers]
        members = space.wishes[region.ravel()].astype(np.float32)
        sums = members.reshape(*region.shape, -1).sum(axis=1)
        for cell in cells_of_clusters(members, region, at_length(sums), cap, rng):
            rows = region[cell].ravel()
            inside = np.arange(len(rows)).reshape(-1, size)
            improve(space.among(rows), inside)
            done.append(rows[inside])
            bar.update(len(rows))
    return np.concatenate(done)


def _clusters_in_a_cell(size: int) -> int:
    """0 when clusters are too large for swaps, or single vectors."""
    cap = max(SWAP_CELL // size, FEWEST)
    return 0 if size == 1 else min(cap, LARGEST_SWAP_CELL // size) if 2 * size <= LARGEST_SWAP_CELL else 0


def _means(vectors: Vectors, clusters: Rows) -> Vectors:
    """Directions of the clusters' means, int16 [G, D]."""
    size = clusters.shape[1]
    means = np.empty((len(clusters), vectors.shape[1]), np.int16)
    step = max(1, PIECE // size)
    for start in range(0, len(clusters), step):
        group = vectors[clusters[start : start + step].ravel()].reshape(-1, size, vectors.shape[1])
        means[start : start + step] = at_length(group.sum(axis=1, dtype=np.int64).astype(np.float64))
    return means


def _without_remainder(vectors: Vectors, size: int) -> Rows:
    rows = np.arange(len(vectors))
    rest = len(vectors) % size
    if not rest:
        return rows
    total = np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), PIECE):
        total += vectors[start : start + PIECE].sum(axis=0, dtype=np.int64)
    return np.sort(np.argsort(-likeness(vectors, rows, as_direction(total)), kind="stable")[: len(rows) - rest])


def _labels(clusters: Rows, count: int) -> Rows:
    """Labels in the order of the clusters' first rows, so that equal clusters have equal numbers."""
    labels = np.full(count, -1, np.int64)
    order = np.argsort(clusters.min(axis=1), kind="stable")
    labels[clusters[order]] = np.arange(len(clusters))[:, None]
    return labels
