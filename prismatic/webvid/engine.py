"""Where the work on clips is done: in processes of this machine, or as a Ray Data pipeline on many.

A Job is told what to do with one clip (in a process of its own, with a time limit) and with a batch of clips that were
read. Both engines give the same results for the same batches: only the order in which batches come back differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prismatic.registry import Registry
from prismatic.webvid.pool import Pool


class Job(Protocol):
    """Work on batches of tasks. Picklable; heavy things (a model) are made at the first call of `finish`."""

    def read(self, task: Any) -> Any:
        """One task, in a process of its own. ValueError, OSError, a crash and a hang become a Failure."""
        ...

    def finish(self, batch: Sequence[Any], read: Iterator[Any]) -> Any:
        """What is kept of a batch. read: for each of its tasks the result of `read`, or a Failure."""
        ...


@dataclass(frozen=True)
class Workers:
    """num_workers: processes that read, on this machine or for each task of Ray. timeout: seconds for one clip.
    address: of the Ray cluster; "" starts one on this machine. gpus: that `finish` needs.
    """

    num_workers: int = 2
    timeout: float = 60.0
    address: str = ""
    gpus: int = 0


Batches = Iterable[Sequence[Any]]
Engine = Callable[[Job, Batches, Workers], Iterator[tuple[Sequence[Any], Any]]]
"""(job, batches, workers) -> (batch, what `finish` gave) for each batch, in any order, each exactly once."""
ENGINES: Registry[Engine] = Registry("engine", flag="--engine")


@ENGINES.register("local")
def local(job: Job, batches: Batches, workers: Workers) -> Iterator[tuple[Sequence[Any], Any]]:
    """Processes of this machine; batches come back in order."""
    with Pool(job.read, workers.num_workers, workers.timeout) as pool:
        for batch in batches:
            yield batch, job.finish(batch, pool.imap(batch))


@ENGINES.register("ray")
def ray(job: Job, batches: Batches, workers: Workers) -> Iterator[tuple[Sequence[Any], Any]]:
    """A Ray Data pipeline; batches come back as they are done."""
    from prismatic.webvid.ray_engine import run

    return run(job, batches, workers)


def cut(tasks: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Tasks in batches of `size`, the last one shorter."""
    batch: list[Any] = []
    for task in tasks:
        batch.append(task)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
