"""The order of the data and its way to this process: a pure function of (seed, epoch), cut into optimizer steps.

A step's global batch is the same for every number of processes. Position is arithmetic: to resume at a step is to start
there, nothing is read again.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from prismatic.data import plan
from prismatic.data.dataset import FILLER_LENGTH, Position, SampleError
from prismatic.data.largest import Batching, largest_rows
from prismatic.data.order import EpochOrder
from prismatic.data.parcels import Parcel, SharedPlaces
from prismatic.data.watch import ReadingWatch
from prismatic.types import Batch, Example

Positions = tuple[Position, ...]
Collate = Callable[[list[Example]], Batch]

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MAX_RESTARTS = 3  # of the reading processes without a step between them


class WorkerError(OSError):
    """A process that reads data has died."""


class Examples(Protocol):
    """What StepLoader needs of a dataset."""

    def __getitem__(self, position: Position) -> Example: ...

    def lengths(self, rows: NDArray[np.int64], epoch: int = 0) -> NDArray[np.int64]:
        """About how long examples are, from their rows alone and alike in every process; 1 or more."""


@dataclass(eq=False)
class StepLoader:
    """Micro-batches of this process, one list for each optimizer step.

    num_examples: rows by epoch. global_batch_size: examples a step, over all processes; per_device_batch_size: examples
    a micro-batch, on average where `packing` makes micro-batches of like numbers of tokens instead. num_workers:
    reading processes, kept over epochs; 0 reads in this one. prefetch: micro-batches that each of them has ready.
    Raises ValueError when the sizes do not divide.
    """

    dataset: Examples
    collate: Collate
    num_examples: Callable[[int], int]
    global_batch_size: int
    per_device_batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    shuffle: bool = True
    packing: bool = False
    prefetch: int = 2
    _schedule: _Schedule = field(init=False, repr=False)
    _places: SharedPlaces | None = field(init=False, repr=False)
    _loader: DataLoader[Batch | _Failure] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        together = self.per_device_batch_size * self.world_size
        if self.per_device_batch_size < 1 or self.global_batch_size % together:
            raise ValueError(
                f"the global batch size {self.global_batch_size} must be a multiple of the per-device batch size "
                f"{self.per_device_batch_size} x {self.world_size} processes; change "
                "--model.finetune_global_batch_size or --model.finetune_per_device_batch_size (or --model.align_...)"
            )
        self._schedule = _Schedule()
        self._loader = self._start()

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this process in a step."""
        return self.global_batch_size // (self.per_device_batch_size * self.world_size)

    def steps_per_epoch(self, epoch: int) -> int:
        """Optimizer steps of an epoch; its last batch may hold fillers."""
        return -(-self.num_examples(epoch) // self.global_batch_size)

    def iterate(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        """This process's micro-batches of each step of an epoch, from `start_step` on.

        A reading process that dies is replaced, and what was under way is read again: nothing is lost or doubled. A
        sample that kills or holds up its process again is treated as a broken one. Raises SampleError for a broken
        sample, WorkerError when reading processes die again and again.
        """
        done, restarts = start_step, 0
        while True:
            self._schedule.positions = self.positions(epoch, done)
            step: list[Batch] = []
            try:
                for batch in self._batches():
                    if isinstance(batch, _Failure):
                        raise SampleError(batch.text)
                    step.append(batch)
                    if len(step) == self.micro_batches:
                        done, restarts = done + 1, 0
                        yield step
                        step = []
                return
            except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
                death = self._death(error)
                if death is None:
                    raise
                restarts += 1
                self._restart(death, restarts, error)
            except GeneratorExit:  # nobody asks for more; the next epoch is read by the same processes
                raise
            except BaseException:
                self.close()
                raise

    def _restart(self, death: str, restarts: int, error: Exception) -> None:
        """New reading processes for those of which one has died, if that may help; else raises WorkerError."""
        watch: ReadingWatch | None = getattr(self.dataset, "watch", None)
        happened = watch.look_at(self._dead()) if watch is not None else []
        if restarts > MAX_RESTARTS:
            raise WorkerError(
                f"a process that reads data has died ({death}), and so have {MAX_RESTARTS} started in its place; it "
                "may have been out of memory: lower --dataset.num_workers or the batch size, or use "
                "--dataset.num_workers 0 to see the reason"
            ) from error
        log.warning(
            f"A process that reads data has died ({'; '.join(happened) or death}); reading goes on with new ones"
        )
        self._loader = self._start()

    def largest(self) -> Batch:
        """The micro-batch with the most positions of the first epoch, of any process, read in this one.

        Raises SampleError for a broken sample.
        """
        batching = Batching(self.global_batch_size, self.per_device_batch_size, self.packing, self.seed, self.shuffle)
        rows = largest_rows(self.dataset, self.num_examples(0), batching)
        return self.collate([self.dataset[Position(0, row)] for row in rows])

    def _batches(self) -> Iterator[Batch | _Failure]:
        """What the DataLoader gives. A death of a reading process is told while it is waited for, and only then."""
        with self._told_of_deaths():
            batches = iter(self._loader)
        while True:
            with self._told_of_deaths():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    @contextmanager
    def _told_of_deaths(self) -> Iterator[None]:
        """Inside, a reading process that dies is a RuntimeError at once.

        DataLoader's own handler of SIGCHLD raises in whatever the main thread is at: the middle of a training step.
        """

        def look(*_: object) -> None:
            for number, code in self._dead():
                raise RuntimeError(f"DataLoader worker {number}: exit code {code}")

        if not self.num_workers or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGCHLD, look)
        try:
            look()
            yield
        finally:
            signal.signal(signal.SIGCHLD, before)

    def _dead(self) -> list[tuple[int, int]]:
        """Number and exit code of the reading processes that have died."""
        return [(number, worker.exitcode) for number, worker in enumerate(self._workers()) if worker.exitcode]

    def _workers(self) -> list[Any]:
        return getattr(getattr(self._loader, "_iterator", None), "_workers", [])

    def _death(self, error: Exception) -> str | None:
        """What is known of a reading process that has died; None when `error` is about something else."""
        if isinstance(error, RuntimeError):
            return str(error).splitlines()[0] if "DataLoader worker" in str(error) else None
        if not self.num_workers:
            return None
        # The pipe broke first; the process is not reaped yet.
        give_up = time.monotonic() + 1.0
        while not self._dead() and time.monotonic() < give_up:
            time.sleep(0.01)
        return f"{type(error).__name__} on its pipe"

    def close(self) -> None:
        """End the reading processes. The loader can be used again; it starts new ones."""
        for worker in self._workers():
            worker.kill()  # asked politely, one that a decoder holds up would be waited for
        self._loader = self._start()

    def positions(self, epoch: int, start_step: int = 0) -> Iterator[Positions]:
        """What `iterate` reads, one micro-batch of this process after another: the plan alone, no example is made."""
        order = EpochOrder(self.num_examples(epoch), self.seed, epoch, self.global_batch_size, self.shuffle)
        groups = self.global_batch_size // self.per_device_batch_size
        for step in range(start_step, len(order)):
            rows, counted = order.step(step)
            lengths = np.where(counted, self.dataset.lengths(rows, epoch), FILLER_LENGTH)
            planned = plan.balanced(lengths, groups) if self.packing else plan.alike(lengths, groups)
            for members in plan.share_of(planned, self.rank, self.world_size):
                yield tuple(Position(epoch, int(rows[i]), bool(counted[i])) for i in members)

    def _start(self) -> DataLoader[Batch | _Failure]:
        # HF tokenizers warn at every fork otherwise; ours never tokenize batches, so nothing is lost.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        workers: dict[str, Any] = {}
        self._places = None
        if self.num_workers:
            # Of each process: what waits, and of this step and the one before what it has read; pixels and features.
            places = 2 * (self.prefetch + 1 + 2 * -(-self.micro_batches // self.num_workers))
            self._places = SharedPlaces.made(self.num_workers, places)
            _mallopt()  # found before a fork: behind it the dynamic linker may be locked by a thread that is not there
            # Forked, so that records, tokenizer and code are shared. The children never touch CUDA.
            method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
            workers = {"multiprocessing_context": method, "persistent_workers": True}
            workers["prefetch_factor"] = self.prefetch
        return DataLoader(
            _MicroBatches(self.dataset, self.collate, self._places),
            sampler=self._schedule,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            # Without one of its own, the loader would draw from the global generator: a trace in reproducible runs.
            generator=torch.Generator(),
            **workers,
        )


@dataclass(frozen=True)
class _Failure:
    """A broken sample on its way out of a worker: DataLoader would wrap an exception into a page of traceback."""

    text: str


class _MicroBatches(Dataset[Any]):
    """Micro-batches by the positions of their examples; what workers run."""

    def __init__(self, dataset: Examples, collate: Collate, places: SharedPlaces | None) -> None:
        self.dataset, self.collate, self.places = dataset, collate, places

    def __getitem__(self, positions: Positions) -> Batch | Parcel | _Failure:
        try:
            batch = self.collate([self.dataset[position] for position in positions])
        except SampleError as error:
            return _Failure(str(error))
        worker = get_worker_info()
        # What is no Batch, such as the questions of an evaluation, goes the usual way.
        if self.places is None or worker is None or not isinstance(batch, Batch):
            return batch
        return Parcel.of(batch, self.places, worker.id)


class _Schedule(Sampler[Positions]):
    """Hands the positions of the current pass to the DataLoader, in the main process."""

    def __init__(self) -> None:
        self.positions: Iterator[Positions] = iter(())

    def __iter__(self) -> Iterator[Positions]:
        return self.positions


def prepare_worker(worker: int) -> None:
    """What a reading process does first."""
    _be_quiet()
    _keep_memory()


def _keep_memory() -> None:
    """Tells glibc to keep what is freed for the next clip.

    It hands megabytes back to the kernel otherwise, and their pages are cleared and mapped again, one by one: as much
    time as reading a clip that is stored as it is needed.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # bytes; no more is allowed
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's; None in other company."""
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


def _be_quiet() -> None:
    """Signals in a reading process: Ctrl-C, and a SIGTERM that is not from the main process, are not its business.

    A launcher signals the whole process group, and the main process then still saves; a reading process that dies
    before it would turn that into an error. It ends when the main process says so, or has gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def watch() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
