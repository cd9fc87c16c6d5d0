"""The order of the data and its way to this process: a pure function of (seed, epoch), cut into optimizer steps.

A step's global batch is the same for every number of processes. Position is arithmetic: to resume at a step is to start
there, nothing is read again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from prismatic.data.dataset import Position, SampleError
from prismatic.types import Batch, Example

Positions = tuple[Position, ...]
Collate = Callable[[list[Example]], Batch]


class WorkerError(OSError):
    """A process that reads data has died."""


class Examples(Protocol):
    """What StepLoader needs of a dataset."""

    def __getitem__(self, position: Position) -> Example: ...

    def length(self, index: int, epoch: int = 0) -> int:
        """About how long an example is; used to put examples of a like length together."""


def epoch_order(
    num_examples: int, seed: int, epoch: int, global_batch_size: int, shuffle: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Order of an epoch: row numbers int64 [n], and whether each counts, bool [n]; n is a multiple of the global batch.

    Every row counts exactly once. What is missing to a whole last batch is filled from the front, not counted. Without
    shuffle the order is that of the file. Raises ValueError without rows.
    """
    if num_examples < 1:
        raise ValueError("a dataset without rows gives no batches")
    order = np.arange(num_examples, dtype=np.int64)
    if shuffle:
        np.random.default_rng([seed % 2**32, epoch]).shuffle(order)
    total = -(-num_examples // global_batch_size) * global_batch_size
    return np.resize(order, total), np.arange(total) < num_examples


@dataclass(eq=False)
class StepLoader:
    """Micro-batches of this process, one list for each optimizer step.

    num_examples: rows by epoch. global_batch_size: examples a step, over all processes; per_device_batch_size: examples
    a micro-batch. num_workers: reading processes, kept over epochs; 0 reads in this one. Raises ValueError when the
    sizes do not divide.
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
    _schedule: _Schedule = field(init=False, repr=False)
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

        Raises SampleError for a broken sample, WorkerError when a reading process has died.
        """
        self._schedule.positions = self._positions(epoch, start_step)
        step: list[Batch] = []
        try:
            for batch in self._loader:
                if isinstance(batch, _Failure):
                    raise SampleError(batch.text)
                step.append(batch)
                if len(step) == self.micro_batches:
                    yield step
                    step = []
        except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
            death = self._death(error)
            if death is None:
                raise
            raise WorkerError(
                f"a process that reads data has died ({death}); it may have been out of memory: lower "
                "--dataset.num_workers or the batch size, or use --dataset.num_workers 0 to see the reason"
            ) from error

    def _death(self, error: Exception) -> str | None:
        """What DataLoader says about a worker that has died; None when `error` is about something else."""
        if isinstance(error, RuntimeError):
            return str(error).splitlines()[0] if "DataLoader worker" in str(error) else None
        if not self.num_workers:
            return None
        # The pipe broke first. The report comes from DataLoader's handler of SIGCHLD, in whatever runs at that moment.
        try:
            time.sleep(1.0)
        except RuntimeError as report:
            return str(report).splitlines()[0]
        return f"{type(error).__name__} on its pipe"

    def close(self) -> None:
        """End the reading processes. The loader can be used again; it starts new ones."""
        self._loader = self._start()

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return epoch_order(self.num_examples(epoch), self.seed, epoch, self.global_batch_size, self.shuffle)

    def _sorted(self, order: np.ndarray, counted: np.ndarray, epoch: int, step: int) -> list[Position]:
        at = slice(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        members = [Position(epoch, int(i), bool(c)) for i, c in zip(order[at], counted[at], strict=True)]
        # Like lengths meet in a micro-batch (little padding), and in what the ranks do at one moment (no waiting).
        return sorted(members, key=lambda p: -self.dataset.length(p.index, p.epoch) if p.counted else 0)

    def _positions(self, epoch: int, start_step: int) -> Iterator[Positions]:
        size = self.per_device_batch_size
        order, counted = self._order(epoch)
        for step in range(start_step, self.steps_per_epoch(epoch)):
            members = self._sorted(order, counted, epoch, step)
            for micro in range(self.micro_batches):
                first = (micro * self.world_size + self.rank) * size
                yield tuple(members[first : first + size])

    def _start(self) -> DataLoader[Batch | _Failure]:
        # HF tokenizers warn at every fork otherwise; ours never tokenize batches, so nothing is lost.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        workers: dict[str, Any] = {}
        if self.num_workers:
            # Forked, so that records, tokenizer and code are shared. The children never touch CUDA.
            method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
            workers = {"multiprocessing_context": method, "persistent_workers": True, "prefetch_factor": 2}
        return DataLoader(
            _MicroBatches(self.dataset, self.collate),
            sampler=self._schedule,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=quiet_worker,
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

    def __init__(self, dataset: Examples, collate: Collate) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, positions: Positions) -> Batch | _Failure:
        try:
            return self.collate([self.dataset[position] for position in positions])
        except SampleError as error:
            return _Failure(str(error))


class _Schedule(Sampler[Positions]):
    """Hands the positions of the current pass to the DataLoader, in the main process."""

    def __init__(self) -> None:
        self.positions: Iterator[Positions] = iter(())

    def __iter__(self) -> Iterator[Positions]:
        return self.positions


def quiet_worker(worker: int) -> None:
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
