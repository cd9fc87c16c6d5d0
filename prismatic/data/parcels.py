"""Batches on their way from the processes that read them, through memory that both sides keep.

Pixels and features are nearly all of a batch. Fresh shared memory for each costs more than reading it may: every page
is cleared by the kernel and mapped twice. Here each reading process has places that were shared with it when it was
forked. It fills one that is free; the place is free again once nothing in the training process holds on to what lies
there.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import sys
import weakref
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from prismatic.types import Batch

PLACE_BYTES = 1 << 30  # of addresses: memory is what has been written to. A larger tensor goes the usual way.
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which the mmap module does not know yet
_TEXT = ("input_ids", "labels", "position_ids")  # kilobytes: quickest through the pipe

log = logging.getLogger(__name__)

_keys = itertools.count()
_known: weakref.WeakValueDictionary[int, SharedPlaces] = weakref.WeakValueDictionary()


class Ticket(NamedTuple):
    """What lies at a place."""

    place: tuple[int, int]  # number of the reading process, number of the place
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class SharedPlaces:
    """`places` for each of `workers` processes that will be forked from this one; kept as long as anyone uses it."""

    def __init__(self, workers: int, places: int) -> None:
        self.key = next(_keys)
        self._each = places
        self._taken = np.frombuffer(mmap.mmap(-1, workers * places), np.bool_).reshape(workers, places)
        self._memory = mmap.mmap(
            -1, workers * places * PLACE_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE
        )
        _known[self.key] = self

    @classmethod
    def made(cls, workers: int, places: int) -> SharedPlaces | None:
        """One, where the system has such memory."""
        if sys.platform != "linux" or not workers:
            return None
        try:
            return cls(workers, places)
        except OSError as error:  # a limit on addresses (ulimit -v), or no promise beyond what there is
            log.info("No lasting memory for batches on their way (%s): they go through fresh memory", error)
            return None

    def put(self, worker: int, tensor: torch.Tensor) -> Ticket | torch.Tensor:
        """In a reading process: a copy at a free place; without one, the tensor itself."""
        free = np.flatnonzero(~self._taken[worker])
        if not len(free) or not 0 < tensor.nbytes <= PLACE_BYTES:
            return tensor
        dense = torch.empty_like(tensor, device="meta")  # in the tensor's own order of memory, without gaps
        ticket = Ticket((worker, int(free[0])), tensor.dtype, tuple(tensor.shape), dense.stride())
        self._taken[ticket.place] = True
        self._tensor(ticket, self._bytes(ticket)).copy_(tensor)
        return ticket

    def take(self, ticket: Ticket) -> torch.Tensor:
        """In the training process: what lies at a place, which is free when all tensors that share it have gone."""
        found = self._bytes(ticket)
        # The tensor's storage holds this array, and so does each view of it.
        weakref.finalize(found, _free, self._taken, ticket.place, os.getpid()).atexit = False
        return self._tensor(ticket, found)

    def taken(self) -> int:
        """Places in use."""
        return int(self._taken.sum())

    def _bytes(self, ticket: Ticket) -> np.ndarray:
        worker, number = ticket.place
        size = int(np.prod(ticket.shape)) * ticket.dtype.itemsize
        return np.frombuffer(self._memory, np.uint8, size, (worker * self._each + number) * PLACE_BYTES)

    def _tensor(self, ticket: Ticket, memory: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(memory).view(ticket.dtype).as_strided(ticket.shape, ticket.stride)


def _free(taken: np.ndarray, place: tuple[int, int], process: int) -> None:
    if os.getpid() == process:  # not for the copy of a tensor in a process that was forked meanwhile
        taken[place] = False


@dataclass(frozen=True)
class Parcel:
    """A Batch in a reading process; unpickled, it is that Batch."""

    key: int
    batch: Batch

    @staticmethod
    def of(batch: Batch, places: SharedPlaces, worker: int) -> Parcel:
        """With pixels and features at places of `worker`."""
        put: Any = partial(places.put, worker)
        text: dict[str, Any] = {name: getattr(batch, name).numpy() for name in _TEXT}
        cache = batch.cache and batch.cache.map(put)
        return Parcel(places.key, replace(batch, frames=put(batch.frames), cache=cache, **text))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.key, self.batch)


def _unpacked(key: int, batch: Batch) -> Batch:
    def take(found: Any) -> torch.Tensor:
        return _known[key].take(found) if isinstance(found, Ticket) else found

    text: dict[str, Any] = {name: torch.from_numpy(getattr(batch, name)) for name in _TEXT}
    return replace(batch, frames=take(batch.frames), cache=batch.cache and batch.cache.map(take), **text)
