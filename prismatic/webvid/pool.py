"""Processes that open other people's files: a hang or a crash costs that one file, not the job.

Owns processes and their time limits; what is done with a file is a function of the caller's.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

LOOK_AHEAD = 4  # tasks for each process that may be done before their turn: bounds what waits in memory
GRACE = 60.0  # seconds after its time limit at which a process ends itself, should nobody be left to end it
START_SECONDS = 120.0  # a process that has not imported its code by then never will


@dataclass(frozen=True)
class Failure:
    """What a task gives when its file is at fault. reason: one line."""

    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    place: int | None = None  # of the task it is at, among all tasks
    deadline: float = 0.0


class Pool:
    """`num_workers` processes that call `function(task)`; both and the results must pickle.

    timeout: seconds for one task. ValueError, OSError and MemoryError of the function are a Failure, so is no answer in
    time and the death of the process, which is then replaced. Any other error is a bug and is raised here.
    """

    def __init__(self, function: Callable[[Any], Any], num_workers: int, timeout: float) -> None:
        assert num_workers >= 1 and timeout > 0
        self._function, self._timeout, self._num_workers = function, timeout, num_workers
        # Not forked from here: this process may have threads (a model's, a progress bar's), which a fork breaks.
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload([function.__module__])
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes. The pool can be used again; it starts new ones."""
        for worker in self._workers:
            _end(worker)
        self._workers.clear()

    def imap(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Results (or Failures) in the order of the tasks, which are taken from the iterable as they are needed."""
        source = iter(tasks)
        waiting: deque[tuple[int, Any]] = deque()
        results: dict[int, Any] = {}
        given = due = 0
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) < self._num_workers and given - due < self._bound():
                    try:
                        waiting.append((given, next(source)))
                        given += 1
                    except StopIteration:
                        exhausted = True
                self._hand_out(waiting)
                if due in results:
                    yield results.pop(due)
                    due += 1
                elif exhausted and due == given:
                    return
                else:
                    results.update(self._collect())
        finally:
            if due < given:  # left early: what is under way is nobody's
                self.close()

    def _bound(self) -> int:
        return self._num_workers * LOOK_AHEAD

    def _hand_out(self, waiting: deque[tuple[int, Any]]) -> None:
        idle = sum(worker.place is None for worker in self._workers)
        for _ in range(min(self._num_workers - len(self._workers), len(waiting) - idle)):
            self._workers.append(self._start())
        for worker in self._workers:
            if worker.place is None and waiting:
                place, task = waiting.popleft()
                try:
                    worker.pipe.send(task)
                except OSError:  # it was ended while it had nothing to do (out of memory): no fault of this task
                    _end(worker)
                    fresh = self._start()
                    worker.process, worker.pipe = fresh.process, fresh.pipe
                    worker.pipe.send(task)
                worker.place, worker.deadline = place, time.monotonic() + self._timeout

    def _collect(self) -> dict[int, Any]:
        """Wait for an answer, a death or a deadline; returns results by place."""
        busy = [worker for worker in self._workers if worker.place is not None]
        limit = min(worker.deadline for worker in busy)
        ready = set(wait([worker.pipe for worker in busy], timeout=max(0.0, limit - time.monotonic())))
        results: dict[int, Any] = {}
        for worker in busy:
            if worker.pipe in ready:
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    results[worker.place] = self._replace(worker, None)  # type: ignore[index]
                    continue
                if kind == "bug":
                    raise RuntimeError(f"in a process of {self._function}:\n{value}")
                results[worker.place] = value  # type: ignore[index]
                worker.place = None
            elif time.monotonic() >= worker.deadline:
                results[worker.place] = self._replace(worker, self._timeout)  # type: ignore[index]
        return results

    def _replace(self, worker: _Worker, timeout: float | None) -> Failure:
        if timeout is None:
            worker.process.join(5)
        code = worker.process.exitcode
        _end(worker)
        self._workers[self._workers.index(worker)] = self._start()
        if timeout is not None or code == -signal.SIGALRM:
            return Failure(f"not done within {self._timeout:g} s (--timeout)")
        if code is not None and code < 0:
            return Failure(f"the process that read it died of signal {-code} ({signal.Signals(-code).name})")
        return Failure(f"the process that read it ended with code {code}")

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._function, self._timeout + GRACE), name="prismatic-reader", daemon=True
        )
        process.start()
        theirs.close()
        if not ours.poll(START_SECONDS):
            process.kill()
            raise RuntimeError(f"a process did not start within {START_SECONDS:g} s")
        try:
            ours.recv()
        except EOFError as error:
            process.join(5)
            raise RuntimeError(f"a process ended with code {process.exitcode} before its first task") from error
        return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.pipe.close()
    worker.process.join(5)  # one that waits for a dead disk cannot be ended: it is left behind


def _serve(pipe: Connection, function: Callable[[Any], Any], limit: float) -> None:
    """What a process runs, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    pipe.send("ready")
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        # The kernel's clock: ends the process in the middle of a library's loop, and when the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, limit)
        answer: tuple[str, Any]
        try:
            answer = "result", function(task)
        except (ValueError, OSError, MemoryError) as error:
            answer = "result", Failure(" ".join(str(error).split()) or type(error).__name__)
        except Exception:  # noqa: BLE001  told to the parent, which raises it
            answer = "bug", traceback.format_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            pipe.send(answer)
        except OSError:
            return
