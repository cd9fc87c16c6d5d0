"""Which sample each reading process is at, so that one that hangs or crashes a decoder can be told and left out.

A decoder is C code: it may loop for ever or take its process down, and no exception says where. Each reading process
notes in shared memory what it reads. A timer in C ends a process that is at one sample for too long, and whoever finds
a process dead looks here for what it was at.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from torch.utils.data import get_worker_info

T = TypeVar("T")
Place = tuple[int, int]  # epoch, row

MAX_WORKERS = 1024
BLAMED_AFTER = 2  # deaths at one sample: a process that is killed from outside was at some sample too
HELD_UP_AFTER = 0.5  # seconds; most samples take a few milliseconds
_BUSY, _EPOCH, _INDEX, _SINCE = range(4)


class ReadingWatch:
    """What the reading processes of one dataset are at. Made before they are started; they share its memory.

    timeout: seconds that a sample may take; 0 for no limit. A process that has no siblings to be restarted beside
    (num_workers 0) has none either.
    """

    def __init__(self, timeout: float = 0.0) -> None:
        self.timeout = timeout
        # Anonymous memory is shared with children that are forked, and with nobody else.
        self._slots = np.frombuffer(mmap.mmap(-1, MAX_WORKERS * 4 * 8), np.float64).reshape(MAX_WORKERS, 4)
        self._deaths: Counter[Place] = Counter()
        self.unreadable: dict[Place, str] = {}

    def read(self, epoch: int, index: int, how: Callable[[], T]) -> T:
        """`how()`, noted as reading row `index` of an epoch. Raises ValueError for a row known to be unreadable.

        In a reading process that takes longer than `timeout` this call does not return: the process ends.
        """
        reason = self.unreadable.get((epoch, index))
        if reason is not None:
            raise ValueError(reason)
        worker = get_worker_info()
        if worker is None:
            return how()
        slot = self._slots[worker.id]
        slot[_EPOCH:] = epoch, index, time.monotonic()
        slot[_BUSY] = 1
        if self.timeout:
            # A thread of C code: it needs no interpreter lock, which a decoder that hangs may hold.
            with open(os.devnull, "w") as nowhere:
                faulthandler.dump_traceback_later(self.timeout, exit=True, file=nowhere)
                try:
                    return how()
                finally:
                    faulthandler.cancel_dump_traceback_later()
                    slot[_BUSY] = 0
        try:
            return how()
        finally:
            slot[_BUSY] = 0

    def held_up(self) -> set[int]:
        """Numbers of the reading processes that have been at one sample for a while: they are inside a decoder."""
        busy, since = self._slots[:, _BUSY] > 0, self._slots[:, _SINCE]
        return set(np.flatnonzero(busy & (time.monotonic() - since > HELD_UP_AFTER)).tolist())

    def look_at(self, dead: Iterable[tuple[int, int]]) -> list[str]:
        """Account for reading processes that have died: (number of the process, its exit code) of each.

        A row at which one was for too long, or at which two have died, is unreadable from now on. Returns what
        happened, one text for each process.
        """
        texts = []
        for worker, code in dead:
            busy, epoch, index, since = self._slots[worker].tolist()
            self._slots[worker, _BUSY] = 0
            if not busy:
                texts.append(f"{_ending(code)} while it waited")
                continue
            place = (int(epoch), int(index))
            self._deaths[place] += 1
            if self.timeout and code == 1 and time.monotonic() - since >= self.timeout:
                self.unreadable[place] = f"reading it took more than --dataset.decode_timeout {self.timeout:g} s"
            elif self._deaths[place] >= BLAMED_AFTER:
                self.unreadable[place] = f"{_ending(code)} in each of {self._deaths[place]} attempts to read it"
            reason = self.unreadable.get(place)
            said = f"it cannot be read: {reason}" if reason else f"{_ending(code)}; it is read again"
            # Counted from one, as the file's rows are in every other text.
            texts.append(f"row {place[1] + 1} of epoch {place[0] + 1}: {said}")
        return texts


def _ending(code: int) -> str:
    """What an exit code of a process says."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"
