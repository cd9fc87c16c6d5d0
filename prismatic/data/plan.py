"""Which examples of an optimizer step go through the model together, from their lengths alone.

Every process makes the same plan. It depends on the number of forward passes of a step over all processes, not on how
many processes share them, so any number of processes computes the same batches.
"""

from __future__ import annotations

from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

Groups = list[list[int]]


def balanced(lengths: NDArray[np.int64], groups: int) -> Groups:
    """Indices of `lengths` in `groups` groups of about equal sums, none empty, the largest sum first.

    For packed rows: a group is one forward pass without padding, and a step takes as long as its slowest. Longest
    first, each into the group with the smallest sum (Graham 1969): at most 4/3 of the best. Where G examples make
    groups of G / groups on average, no sum exceeds G / groups times the longest: what padding would have taken.
    lengths: [G] of 1 or more, G >= groups.
    """
    assert len(lengths) >= groups and lengths.min() >= 1
    order = np.argsort(-lengths, kind="stable")
    members: Groups = [[] for _ in range(groups)]
    # An entry is sum * groups + number of the group: one integer, which sorts by the sum.
    heap = list(range(groups))
    for index, length in zip(order.tolist(), (lengths[order] * groups).tolist(), strict=True):
        least = heap[0]
        members[least % groups].append(index)
        heapreplace(heap, least + length)
    return [members[entry % groups] for entry in sorted(heap, reverse=True)]


def alike(lengths: NDArray[np.int64], groups: int) -> Groups:
    """Indices of `lengths` in `groups` groups of equal number, like lengths together, the longest first.

    For padded rows: a row is as long as the longest of its group. Raises ValueError when they do not divide.
    """
    if len(lengths) % groups:
        raise ValueError(f"{len(lengths)} examples cannot be cut into {groups} groups of equal number")
    return np.argsort(-lengths, kind="stable").reshape(groups, -1).tolist()


def share_of(groups: Groups, rank: int, world_size: int) -> Groups:
    """The groups of one process, in turn: at each moment all work on groups of like size, and over a step the sums of
    the processes are alike, since the order of the processes is turned around from one turn to the next."""
    turns = len(groups) // world_size
    return [groups[turn * world_size + (rank if turn % 2 == 0 else world_size - 1 - rank)] for turn in range(turns)]
