"""What this process opens, connects to, or starts: watched by an audit hook."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_opened: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(args[0], (str, bytes)):
        _opened.append(os.path.realpath(os.fsdecode(args[0])))
    elif _opened is not None and event in ("socket.connect", "subprocess.Popen", "os.system"):
        _opened.append(event)


sys.addaudithook(_hook)  # for the rest of the process; it records inside `watched` alone


@contextmanager
def watched() -> Iterator[list[str]]:
    """What is opened (files, where they really lie), connected to, or started inside."""
    global _opened
    _opened = seen = []
    try:
        yield seen
    finally:
        _opened = None
