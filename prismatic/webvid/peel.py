"""A first clustering: take a vector and its L - 1 nearest away, then the next, until none is left.

Candidates come from a projection to fewer dimensions, the nearest of them from the full width. A cell of n vectors
costs n**2 / 2L short dot products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prismatic.webvid.quantised import NORM, Rows

if TYPE_CHECKING:
    from prismatic.webvid.balanced import Space

BATCH = 64  # seeds compared at a time
SHORTLIST = 4  # times L candidates a seed
COMPACT_BELOW = 0.8  # share of vectors left at which those taken are moved out of the way
GROUP = 16  # columns whose largest value stands for them when candidates are chosen
TAKEN = np.float32(-2 * NORM * NORM)  # added to the scores of vectors that are taken: below any other


def peel(space: Space, rows: Rows, size: int, rng: np.random.Generator) -> Rows:
    """Clusters int64 [n / size, size] of `rows`, n of them, a multiple of `size`."""
    seeds = rng.permutation(len(rows))
    left = np.arange(len(rows))
    taken = np.zeros(len(rows), bool)
    # One column more than the vectors have, 1 for a seed: it marks those that are taken.
    shown = np.zeros((len(rows), space.short.shape[1] + 1), np.float32)
    shown[:, :-1] = space.short[rows]
    clusters: list[Rows] = []
    while seeds.size:
        batch = seeds[: min(BATCH, max(1, len(seeds) // (8 * size)))]
        asked = shown[np.searchsorted(left, batch)]
        asked[:, -1] = 1
        near = _nearest(space, rows, asked @ shown.T, batch, left, taken, size)
        before = len(clusters)
        for seed, found in zip(batch.tolist(), near, strict=True):
            free = found[~taken[found]]
            free = free[free != seed][: size - 1]
            # The first seed of a batch always finds enough; another one whose candidates are gone tries again.
            if taken[seed] or len(free) < size - 1:
                continue
            cluster = np.append(free, seed)
            taken[cluster] = True
            clusters.append(cluster)
        seeds = seeds[~taken[seeds]]
        keep = ~taken[left]
        if keep.mean() < COMPACT_BELOW:
            left, shown = left[keep], shown[keep]
        else:
            shown[np.searchsorted(left, np.concatenate(clusters[before:])), -1] = TAKEN
    return rows[np.array(clusters, np.int64).reshape(-1, size)]


def _nearest(
    space: Space, rows: Rows, scores: NDArray[np.float32], seeds: Rows, left: Rows, taken: NDArray[np.bool_], size: int
) -> Rows:
    """For each seed its candidates, nearest first, int64 [b, k]. scores: [b, len(left)]."""
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
