"""Where the rows of a large annotation file stand: 20 bytes a row, made once, kept on the disk and mapped from there.

The index lies beside its file, or in the user's cache where that folder cannot be written. It holds for one size and
time of change of the file; a file that has changed is looked through again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from prismatic.data.annotation_files import AnnotationError
from prismatic.data.row_scan import NotPlainError, scan_rows
from prismatic.data.sizes import RowSizes, SizeTable
from prismatic.types import Record

log = logging.getLogger(__name__)

INDEXED_FROM = 8 << 20
"""Bytes from which on a file is not read into memory."""

_MAGIC = b"prismatic rows 1"
_COLUMNS = (("start", "<i8"), ("size", "<i4"), ("text", "<i4"), ("shape", "<i4"))
_KEPT_BROKEN = 1000


@dataclass(frozen=True)
class RowIndex:
    """The rows of one file. start: byte, int64 [n]; size: bytes, int32 [n]. broken: rows that are no records, the first
    thousand. state: bytes and time of change of the file (ns). place: where the index itself is, if anywhere.
    """

    start: NDArray[np.int64]
    size: NDArray[np.int32]
    sizes: RowSizes
    broken: list[int]
    state: tuple[int, int]
    place: Path | None = None

    def __len__(self) -> int:
        return len(self.start)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that is not forked maps the file again: a pickled map would be a copy.
        if self.place is not None:
            return _map, (self.place, self.state)
        return RowIndex, (self.start, self.size, self.sizes, self.broken, self.state)


def open_index(path: Path, meaning: str, parse: Callable[[int, Any], Record]) -> RowIndex | None:
    """The index of a file, made when there is none; None for a small file, or one that cannot be read row by row.

    meaning: what else decides how rows are understood (media folder, names of columns); indexes of different meanings
    do not meet. parse: (row, its value) -> Record; its AnnotationError marks the row as broken.

    Of several processes one makes it and the others wait, where the file system knows locks; otherwise each does.
    Raises AnnotationError when the file changes meanwhile.
    """
    try:
        file = path.open("rb")
    except OSError:  # whoever reads it whole says what is wrong
        return None
    with file:
        if os.fstat(file.fileno()).st_size < INDEXED_FROM:
            return None
        with _locked(file):
            return _find(path, meaning) or _make(path, meaning, parse)


def state_of(path: Path) -> tuple[int, int]:
    """Bytes and time of change (ns) of a file. Raises OSError."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _find(path: Path, meaning: str) -> RowIndex | None:
    for place in _places(path, meaning):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _map(place, state_of(path))
    return None


def _map(place: Path, state: tuple[int, int]) -> RowIndex:
    """Raises ValueError for an index of another state of the file, or none at all."""
    with place.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("no index")
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    if tuple(header["state"]) != state:
        raise ValueError("stale")
    rows, at = header["rows"], -(-(len(_MAGIC) + 8 + length) // 8) * 8
    if place.stat().st_size != at + rows * sum(np.dtype(kind).itemsize for _, kind in _COLUMNS):
        raise ValueError("cut short")
    columns = {}
    for name, kind in _COLUMNS:
        columns[name] = np.memmap(place, kind, mode="r", offset=at, shape=(rows,))
        at += columns[name].nbytes
    shapes = [tuple((str(medium), int(count)) for medium, count in shape) for shape in header["shapes"]]
    sizes = RowSizes(columns["text"], columns["shape"], shapes)
    return RowIndex(columns["start"], columns["size"], sizes, header["broken"], state, place)


def _make(path: Path, meaning: str, parse: Callable[[int, Any], Record]) -> RowIndex | None:
    began, state = time.monotonic(), state_of(path)
    log.info("looking through %s (%.0f MB), once", path, state[0] / 1e6)
    starts, lengths, table = array("q"), array("i"), SizeTable()
    broken: list[int] = []
    try:
        for number, (start, length, value) in enumerate(scan_rows(path)):
            try:
                table.add(parse(number, value))
            except AnnotationError:
                table.add(None)
                broken.append(number)
            starts.append(start)
            lengths.append(length)
    except NotPlainError:
        return None
    if state_of(path) != state:
        raise AnnotationError(f"annotation file {path} has changed while it was read; start again when it is whole")
    columns = np.array(starts, "<i8"), np.array(lengths, "<i4")
    index = RowIndex(*columns, table.done(), broken[:_KEPT_BROKEN], state)
    log.info("%d rows in %.0f s; later runs open them at once", len(index), time.monotonic() - began)
    for place in _places(path, meaning):
        with contextlib.suppress(OSError):
            _write(place, index)
            return _map(place, state)
    log.warning("no folder takes the index of %s: each process makes its own (set XDG_CACHE_HOME to one)", path)
    return index


def _write(place: Path, index: RowIndex) -> None:
    header = {"state": index.state, "rows": len(index), "broken": index.broken}
    text = json.dumps({**header, "shapes": index.sizes.shapes}).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + text
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(head + b"\0" * (-len(head) % 8))
            for column in (index.start, index.size, index.sizes.text, index.sizes.shape):
                file.write(column.tobytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(place)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _places(path: Path, meaning: str) -> Iterator[Path]:
    full = os.path.realpath(path)
    yield Path(f"{os.path.dirname(full)}/.{path.name}.{_hash(meaning)[:12]}.index")
    with contextlib.suppress(RuntimeError):  # a user without a home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        yield cache / "prismatic" / "rows" / f"{_hash(f'{full} {meaning}')[:24]}.index"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _locked(file: IO[bytes]) -> Iterator[None]:
    """One process at a time inside; a lock goes with its process, however that ends. None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    yield
