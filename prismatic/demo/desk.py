"""The line before the model: one call at a time, in the order of asking, on a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

log = logging.getLogger(__name__)

Event = dict[str, Any]
"""Something to tell a visitor, as JSON. `waiting` (calls before this one) and `text` (a piece of the answer) may come
often; anything else comes once, at the end: what came out, or `error`."""

TICK_S = 0.5  # between two events while nothing happens: the visitor sees the line move, and is seen to have gone


class Job:
    """One call of the model for one visitor. work: called with the job on the desk's thread; `tell` gives events."""

    def __init__(self, work: Callable[[Job], None]) -> None:
        self.work = work
        self.stop = threading.Event()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def tell(self, **event: Any) -> None:
        """Pass an event on to the visitor."""
        self._events.put(event)

    def run(self) -> None:
        """Do the work; whatever goes wrong is an event, and the next one is served."""
        try:
            if self.stop.is_set():
                self.tell(error="stopped before it began")
            else:
                self.work(self)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.tell(error="the GPU has not enough memory for this; lower the number of frames")
        except (ValueError, OSError) as error:
            self.tell(error=str(error))
        except Exception:
            log.exception("a call of the model failed")
            self.tell(error="this failed inside the program; the terminal in which it runs says why")
        finally:
            self._events.put(None)

    def next_event(self) -> Event | None:
        """The next event; None at the end. Raises queue.Empty after TICK_S without one."""
        return self._events.get(timeout=TICK_S)


class Desk:
    """Serves jobs one by one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: list[Job] = []  # the first is being served
        self._open = True
        # A daemon: it may be deep in a call of the model when the program ends.
        threading.Thread(target=self._serve, name="model", daemon=True).start()

    def submit(self, work: Callable[[Job], None]) -> Job:
        """Put work at the end of the line."""
        job = Job(work)
        with self._changed:
            self._line.append(job)
            self._changed.notify_all()
        return job

    def events(self, job: Job) -> Iterator[Event]:
        """What there is to tell about a job until it is done; `waiting` when there has been nothing for a while."""
        while True:
            try:
                event = job.next_event()
            except queue.Empty:
                yield {"waiting": self._ahead(job)}
                continue
            if event is None:
                return
            yield event

    def close(self, timeout_s: float) -> bool:
        """Stop everything; whether the model is at rest within `timeout_s`."""
        with self._changed:
            self._open = False
            for job in self._line:
                job.stop.set()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._line, timeout_s)

    def _ahead(self, job: Job) -> int:
        with self._changed:
            return self._line.index(job) if job in self._line else 0

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or not self._open)
                if not self._line:
                    return
                job = self._line[0]
            job.run()
            with self._changed:
                self._line.pop(0)
                self._changed.notify_all()
