"""A first clustering: take a vector and its L - 1 nearest away, then the next, until none is left.

Candidates come from a projection to fewer dimensions, the nearest of them from the full width. A cell of n vectors
costs n**2 / 2L short dot products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prismatic.webvid.quantised import NORM, Rows, project

if TYPE_CHECKING:
    from prismatic.webvid.balanced import Space

BATCH = 64  # seeds compared at a time
SHORTLIST = 4  # times L candidates a seed
COMPACT_BELOW = 0.8  # share of vectors left at which those taken are moved out of the way
GROUP = 16  # columns whose largest value stands for them when candidates are chosen


def peel(space: Space, rows: Rows, size: int, rng: np.random.Generator, signs: NDArray[np.float32] | None) -> Rows:
    """Clusters int64 [n / size, size] of the numbers 0 ... n - 1 of `rows`; n is a multiple of `size`."""
    short = project(space.near, rows, signs)
    left = np.arange(len(rows))
    taken = np.zeros(len(rows), bool)
    order = rng.permutation(len(rows))
    shown = short[left]
    clusters: list[Rows] = []
    while order.size:
        batch = min(BATCH, max(1, len(order) // (8 * size)))
        seeds = order[:batch]
        near = _nearest(space, rows, short[seeds] @ shown.T, seeds, left, taken, size)
        for seed, found in zip(seeds.tolist(), near, strict=True):
            free = found[~taken[found]]
            free = free[free != seed][: size - 1]
            # The first seed of a batch always finds enough; another one whose candidates are gone tries again.
            if taken[seed] or len(free) < size - 1:
                continue
            cluster = np.append(free, seed)
            taken[cluster] = True
            clusters.append(cluster)
        order = order[~taken[order]]
        keep = ~taken[left]
        if keep.mean() < COMPACT_BELOW:
            left, shown = left[keep], shown[keep]
    return np.array(clusters, np.int64).reshape(-1, size)


def _nearest(
    space: Space, rows: Rows, scores: NDArray[np.float32], seeds: Rows, left: Rows, taken: NDArray[np.bool_], size: int
) -> Rows:
    """For each seed its candidates, nearest first, int64 [b, k]. scores: [b, len(left)], changed in place."""
    scores += np.where(taken[left], np.float32(-4 * NORM * NORM), np.float32(0))
    found = left[_largest(scores, min(len(left), SHORTLIST * size))]
    exact = space.between(rows[seeds], rows[found])
    exact[taken[found]] = -np.inf
    return np.take_along_axis(found, np.argsort(-exact, axis=1, kind="stable"), axis=1)


def _largest(scores: NDArray[np.float32], k: int) -> Rows:
    """Columns of the k largest values of each row, in no order.

    The k largest lie in at most k groups of GROUP columns, those with the k largest maxima: only these are searched.
    """
    groups = scores.shape[1] // GROUP
    if groups <= 2 * k:
        return np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
    whole = groups * GROUP
    highest = scores[:, :whole].reshape(-1, GROUP, groups).max(axis=1)
    best = np.argpartition(highest, groups - k, axis=1)[:, groups - k :]
    columns = (best[:, :, None] + groups * np.arange(GROUP)).reshape(len(scores), -1)
    rest = np.broadcast_to(np.arange(whole, scores.shape[1]), (len(scores), scores.shape[1] - whole))
    columns = np.concatenate([columns, rest], axis=1)
    values = np.take_along_axis(scores, columns, axis=1)
    inside = np.argpartition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k :]
    return np.take_along_axis(columns, inside, axis=1)
