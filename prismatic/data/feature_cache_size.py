"""How much the entries of a feature cache take, counted by all processes together under a lock."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GB = 10**9
SUFFIX = ".feat"
_COUNT = struct.Struct("<qq")


class CacheFullError(ValueError):
    """The limit of the cache is reached."""


class SizeCount:
    """Bytes and number of the entries below root/entries, in the file root/size.

    Room is taken before a file is written, so the limit (bytes; None: none) holds whatever happens. A process that is
    killed while it writes leaves the count too high by that file: at the limit the entries are counted anew, once.
    """

    def __init__(self, root: Path, limit: int | None) -> None:
        self.root, self.limit = root, limit
        self._recounted = False

    def usage(self) -> tuple[int, int]:
        """(bytes, number) of all entries, of every recipe. Raises OSError."""
        if not (self.root / "size").exists():
            self.recount()
        with self._locked() as file:
            return _read(file)

    def reserve(self, size: int) -> None:
        """Take room for one entry. Raises CacheFullError at the limit, OSError."""
        if not (self.root / "size").exists():
            self.recount()
        for _ in range(2):
            with self._locked() as file:
                used, count = _read(file)
                if self.limit is None or used + size <= self.limit:
                    _write(file, used + size, count + 1)
                    return
            if self._recounted:
                break
            self._recounted = True
            self.recount()
        raise CacheFullError(f"{amount(used)} of {amount(self.limit or 0)} are used")

    def release(self, size: int) -> None:
        """Give the room of one entry back."""
        with self._locked() as file:
            used, count = _read(file)
            _write(file, max(0, used - size), max(0, count - 1))

    def recount(self) -> None:
        """Count the files. Raises OSError."""
        with self._locked() as file:
            before = _read(file)
        sizes = []
        folder = self.root / "entries"
        for group in folder.iterdir() if folder.is_dir() else ():
            for entry in entries(group):
                try:
                    sizes.append(entry.stat().st_size)
                except FileNotFoundError:  # removed meanwhile
                    continue
        with self._locked() as file:
            now = _read(file)
            # What others added meanwhile may be counted twice, never left out: the limit holds.
            added = max(0, now[0] - before[0]), max(0, now[1] - before[1])
            _write(file, sum(sizes) + added[0], len(sizes) + added[1])

    @contextmanager
    def _locked(self) -> Iterator[int]:
        import fcntl

        file = os.open(self.root / "size", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def amount(size: float) -> str:
    """A number of bytes to read."""
    for unit, name in ((GB, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def entries(group: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of one recipe."""
    if not group.is_dir():
        return
    for folder in os.scandir(group):
        if folder.is_dir():
            yield from (entry for entry in os.scandir(folder.path) if entry.name.endswith(SUFFIX))


def _read(file: int) -> tuple[int, int]:
    data = os.pread(file, _COUNT.size, 0)
    return _COUNT.unpack(data) if len(data) == _COUNT.size else (0, 0)


def _write(file: int, used: int, count: int) -> None:
    os.pwrite(file, _COUNT.pack(used, count), 0)
