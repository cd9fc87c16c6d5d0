"""Swaps of pairs between clusters of one size, as long as that raises the sum of similarities within clusters.

With S the sum of a cluster's vectors, that sum is |S|**2 over all clusters: the part of the variance explained.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_ROUNDS = 200
CANDIDATES = 2.0  # moves that are looked at in a round, times the vectors
WIDEN = 4  # times as many once none of them helps
MATCHINGS = 4  # times that swaps of untouched clusters are added to a round
ENOUGH = 0.02  # a round that gains less than this share of what the first one gained is the last
LEAST_GAIN = 0.5  # in units of NORM**-2 of a cosine: below it is rounding


def improve(similarity: NDArray[np.float32], clusters: NDArray[np.int64]) -> None:
    """Swap members of `clusters` [G, L] (each of 0 ... n - 1 once, changed in place) until no swap in sight helps much.

    similarity: symmetric [n, n], whole numbers. In each round the most wanted moves to another cluster are paired with
    the member of that cluster who gives way best; swaps that share no cluster are then made at once, so that their
    gains add up and the sum rises with every round.
    """
    num_groups, size = clusters.shape
    n = num_groups * size
    rows = np.arange(n)
    labels = np.empty(n, np.int64)
    labels[clusters] = np.arange(num_groups)[:, None]
    own = similarity.diagonal().copy()
    # pull[g, i]: sum of the similarities of i to the members of group g, itself included in its own group.
    pull = similarity[clusters[:, 0]]
    for k in range(1, size):
        pull += similarity[clusters[:, k]]
    limit = max(1, int(CANDIDATES * n))
    first_round = 0.0
    for _ in range(MAX_ROUNDS):
        wish = pull - (pull[labels, rows] - own)  # of i for group g, over staying
        wish[labels, rows] = 0
        moves = np.flatnonzero(wish > 0)
        all_seen = len(moves) <= limit
        if not all_seen:
            moves = moves[np.argpartition(-wish.ravel()[moves], limit - 1)[:limit]]
        there, i = np.divmod(moves, n)
        here = labels[i]
        partners = clusters[there]
        gain = wish[there, i][:, None] + wish[here[:, None], partners] - 2 * similarity[i[:, None], partners]
        best = gain.argmax(axis=1) if len(moves) else moves
        gained = gain[np.arange(len(moves)), best]
        good = np.flatnonzero(gained > LEAST_GAIN)
        if not len(good):
            if all_seen:
                break
            limit *= WIDEN
            continue
        good = good[np.lexsort((moves[good], -gained[good]))]
        good = good[_apart(here[good], there[good], num_groups)]
        j = partners[good, best[good]]
        i, here, there = i[good], here[good], there[good]
        change = similarity[j] - similarity[i]
        pull[here] += change
        pull[there] -= change
        clusters[here, (clusters[here] == i[:, None]).argmax(axis=1)] = j
        clusters[there, (clusters[there] == j[:, None]).argmax(axis=1)] = i
        labels[i], labels[j] = there, here
        won = float(gained[good].sum(dtype=np.float64))
        first_round = first_round or won
        if won < ENOUGH * first_round:
            break


def _apart(a: NDArray[np.int64], b: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
    """Numbers of pairs (a, b), given best first, of which no two share a group."""
    free = np.ones(num_groups, bool)
    pairs = np.arange(len(a))
    taken = []
    for _ in range(MATCHINGS):
        first = np.full(num_groups, len(a))
        np.minimum.at(first, a[pairs], pairs)
        np.minimum.at(first, b[pairs], pairs)
        best = pairs[(first[a[pairs]] == pairs) & (first[b[pairs]] == pairs)]
        taken.append(best)
        free[a[best]] = free[b[best]] = False
        pairs = pairs[free[a[pairs]] & free[b[pairs]]]
        if not len(pairs):
            break
    return np.concatenate(taken)
