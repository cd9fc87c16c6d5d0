"""The order of an epoch: a pure function of (seed, epoch, position), asked for one optimizer step at a time."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SHUFFLED_WHOLE = 1 << 20
"""Up to so many rows the whole permutation is drawn at once (20 ms); of more rows only the places asked for."""

_ROUNDS = 8


class EpochOrder:
    """Which rows each step of an epoch takes.

    Every row counts exactly once. What is missing to a whole last batch is filled from the front, not counted. Without
    shuffle the order is that of the file. Raises ValueError without rows.
    """

    def __init__(self, num_examples: int, seed: int, epoch: int, global_batch_size: int, shuffle: bool) -> None:
        if num_examples < 1:
            raise ValueError("a dataset without rows gives no batches")
        self._rows, self._batch, self._shuffle = num_examples, global_batch_size, shuffle
        self._key = (seed % 2**32, epoch)

    def __len__(self) -> int:
        """Steps of the epoch."""
        return -(-self._rows // self._batch)

    def step(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Row numbers int64 [G] of a step from 0 to len - 1, and whether each counts, bool [G]."""
        places = np.arange(number * self._batch, (number + 1) * self._batch, dtype=np.int64)
        return self._at(places % self._rows), places < self._rows

    def _at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._shuffle:
            return places
        if self._rows <= SHUFFLED_WHOLE:
            return self._permutation[places]
        return Scrambled(self._rows, *self._key)(places)

    @cached_property
    def _permutation(self) -> NDArray[np.int64]:
        order = np.arange(self._rows, dtype=np.int64)
        np.random.default_rng(self._key).shuffle(order)
        return order


class Scrambled:
    """A permutation of the numbers below n of which any part can be asked for, in no memory.

    A Feistel network of eight rounds over pairs of digits of base ceil(sqrt(n)) (Luby and Rackoff, 1988); what falls
    outside n goes through it again until it falls inside ("cycle walking", Black and Rogaway, 2002).
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n = n
        self._side = np.uint64(math.isqrt(n - 1) + 1)
        self._keys = np.random.default_rng((seed, epoch)).integers(0, 2**64, _ROUNDS, dtype=np.uint64)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where numbers from 0 to n - 1 go: int64 of the same shape."""
        out = self._once(places.astype(np.uint64))
        while (outside := out >= self.n).any():
            out[outside] = self._once(out[outside])
        return out.astype(np.int64)

    def _once(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = np.divmod(places, self._side)
        for key in self._keys:
            left, right = right, (left + _mixed(right ^ key)) % self._side
        return left * self._side + right


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), halved so that a sum with it does not overflow."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)
