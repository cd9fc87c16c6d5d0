"""Threads for work beside the training, used again and again.

A new thread for each checkpoint would get memory of its own from the C library each time, of which some MiB stay when
it ends: a run of many checkpoints would seem to leak until all of the library's places have been used.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_idle: list[_Worker] = []
_lock = threading.Lock()


def in_thread(action: Callable[[], Any]) -> Future[Any]:
    """Run `action` in a thread that the end of the process does not wait for."""
    result: Future[Any] = Future()
    with _lock:
        worker = _idle.pop() if _idle else _Worker()
    if not worker.is_alive():  # never started, or of the process that this one was forked from
        worker = _Worker()
        worker.start()
    worker.tasks.put((action, result))
    return result


class _Worker(threading.Thread):
    """Does one thing after the other, and is idle between them."""

    def __init__(self) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            self._do(*self.tasks.get())

    def _do(self, action: Callable[[], Any], result: Future[Any]) -> None:
        value, problem = None, None
        try:
            value = action()
        # Whatever it is, it belongs to whoever asks for the result, as with an executor; also a CheckpointException.
        except BaseException as error:  # noqa: BLE001
            problem = error
        with _lock:
            _idle.append(self)  # before the result is there: whoever waits for it may have the next thing to do
        if problem is not None:
            result.set_exception(problem)
        else:
            result.set_result(value)
