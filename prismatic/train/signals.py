"""Stopping on request: SIGTERM and Ctrl-C set a flag, the loop saves at the next step's end and leaves."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}
"""Of a run that a signal stopped and that has saved. SIGTERM is how schedulers and torchrun's agents ask to leave, and
a run that left as asked has not failed; Ctrl-C is 128 + its number, as shells report it."""


class Interrupted(BaseException):
    """A signal asks to stop while the loop waits for its data."""


class StopSignals:
    """While entered, takes SIGTERM and SIGINT and remembers the first; further ones change nothing.

    waiting: set while the loop can be left where it stands; a signal then raises Interrupted. A decoder may hang for
    minutes, and whoever asks to leave seldom waits that long.

    A launcher forwards what the terminal has sent already, so a second signal is no sign of impatience. Outside of the
    main thread no handlers can be set, and none are.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.waiting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def counts(self) -> list[float]:
        """[SIGTERM received, SIGINT received] as 0 or 1, to be summed over processes."""
        return [float(self.received is number) for number in EXIT_CODES]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            # Not through logging: its lock may be held by the very code that was interrupted.
            if os.environ.get("RANK", "0") == "0":
                os.write(2, f"\n{self.received.name}: saving after this step, then leaving\n".encode())
            if self.waiting:
                raise Interrupted


def received(counts: list[float]) -> signal.Signals | None:
    """The signal that summed `StopSignals.counts` tell of, or None to go on."""
    return next((number for count, number in zip(counts, EXIT_CODES, strict=True) if count), None)
