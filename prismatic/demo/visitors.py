"""Visitors: each has a conversation of their own, at most one file of theirs on disk, and one call at a time."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from prismatic.ask import Conversation
from prismatic.demo.desk import Desk, Event, Job
from prismatic.video.decode import VIDEO_EXTENSIONS
from prismatic.video.images import PICTURE_EXTENSIONS

_CHUNK_BYTES = 1 << 20


class GoneError(ValueError):
    """There is no such conversation (any more)."""


class BusyError(ValueError):
    """The visitor's last request is still being answered."""


class Visitor:
    """One open page. token: what it shows with each request. name: of the file that is looked at, as the visitor
    knows it.
    """

    def __init__(self, conversation: Conversation, folder: Path) -> None:
        self.token = secrets.token_urlsafe(16)
        self.conversation = conversation
        self.name = ""
        self.seen_at = time.monotonic()
        self._folder = folder
        self._uploads = 0
        self._job: Job | None = None
        self._busy = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._busy.locked()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One request at a time changes the conversation. Raises BusyError."""
        if not self._busy.acquire(blocking=False):
            raise BusyError("your last request is still being answered; stop it, or wait for it")
        try:
            yield
        finally:
            self._busy.release()

    def look_at(self, path: Path, name: str) -> None:
        """Begin a conversation about another file; an upload before it is deleted."""
        before = self.conversation.media
        self.conversation.open(str(path))
        self.name = name
        if before is not None and before != path and before.parent == self._folder:
            before.unlink(missing_ok=True)

    def receive(self, source: BinaryIO, length: int, name: str) -> None:
        """Take in an upload of `length` bytes and look at it. Raises ValueError when less comes, or OSError."""
        self._folder.mkdir(exist_ok=True)
        self._uploads += 1
        # A name for each: what the model remembers of files goes by their names. What is named neither like a picture
        # nor like a video (.mpg, .ts, .3gp) is tried as a video; the decoder looks at the content.
        extension = Path(name).suffix.lower()
        known = extension in VIDEO_EXTENSIONS or extension in PICTURE_EXTENSIONS
        path = self._folder / f"{self._uploads}{extension if known else '.mkv'}"
        try:
            with path.open("wb") as file:
                while length and (chunk := source.read(min(length, _CHUNK_BYTES))):
                    file.write(chunk)
                    length -= len(chunk)
            if length:
                raise ValueError(f"the upload of '{name}' broke off")
        except (ValueError, OSError):
            path.unlink(missing_ok=True)
            raise
        self.look_at(path, name)

    def events(self, desk: Desk, work: Callable[[Job], None]) -> Iterator[Event]:
        """Have the desk do some work, and what there is to tell of it; closing this early stops the work."""
        job = self._job = desk.submit(work)
        try:
            for event in desk.events(job):
                if "error" in event and self.conversation.media is not None:
                    # The visitor knows the file by its own name.
                    event["error"] = event["error"].replace(str(self.conversation.media), self.name)
                yield event
        finally:
            job.stop.set()
            self._job = None

    def stop(self) -> None:
        """Have the call of the model end, if there is one: with what it has written so far."""
        if self._job is not None:
            self._job.stop.set()

    def leave(self) -> None:
        """Stop, and delete the upload."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class Visitors:
    """Everybody with an open page, and the folder of their uploads, which goes with `close`."""

    def __init__(self, begin: Callable[[], Conversation], most: int) -> None:
        self._begin, self._most = begin, most
        self._uploads = tempfile.TemporaryDirectory(prefix="prismatic-demo-", ignore_cleanup_errors=True)
        self._visitors: dict[str, Visitor] = {}
        self._lock = threading.Lock()
        self._count = 0

    def enter(self) -> Visitor:
        """A new visitor; where there are too many, the one that has been silent for longest leaves."""
        with self._lock:
            if len(self._visitors) >= self._most:
                idle = [visitor for visitor in self._visitors.values() if not visitor.busy]
                if not idle:
                    raise BusyError(f"there are {self._most} visitors already, all being answered; try again later")
                self._remove(min(idle, key=lambda visitor: visitor.seen_at))
            self._count += 1
            visitor = Visitor(self._begin(), Path(self._uploads.name) / str(self._count))
            self._visitors[visitor.token] = visitor
            return visitor

    def find(self, token: str) -> Visitor:
        """The visitor who shows `token`. Raises GoneError."""
        with self._lock:
            visitor = self._visitors.get(token)
            if visitor is None:
                raise GoneError("this conversation has ended here; reload the page to begin another")
            visitor.seen_at = time.monotonic()
            return visitor

    def leave(self, visitor: Visitor) -> None:
        """Somebody closes the page."""
        with self._lock:
            self._remove(visitor)

    def close(self) -> None:
        """Everybody leaves, and all uploads are deleted."""
        with self._lock:
            for visitor in list(self._visitors.values()):
                self._remove(visitor)
            self._uploads.cleanup()

    def _remove(self, visitor: Visitor) -> None:
        if self._visitors.pop(visitor.token, None) is not None:
            visitor.leave()
