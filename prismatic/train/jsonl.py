"""A file of JSON rows that only grows, and holds whole rows at any moment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Row = dict[str, Any]


class RowFile:
    """Appends rows to a file; one process writes.

    A full disk does not stop the run: weights are worth more than their log. The rows wait in memory and are written
    once there is room; the file never keeps half a row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []
        self._complained = False

    def append(self, row: Row) -> None:
        """Write one row at the end of the file."""
        self._waiting.append(json.dumps(row).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write rows that a full disk has kept waiting, if there are any and it can be done."""
        if not self._waiting:
            return
        try:
            self._write(b"".join(self._waiting))
        except OSError as error:
            if not self._complained:
                log.warning(f"Could not write to {self.path} ({error.strerror}); its rows wait in memory")
            self._complained = True
        else:
            self._waiting.clear()

    @property
    def waiting(self) -> int:
        """Rows that are not on the disk."""
        return len(self._waiting)

    def keep(self, wanted: Callable[[int, Row], bool]) -> None:
        """Rewrite the file with the rows for which `wanted(number, row)` holds; a half row at the end goes too."""
        if not self.path.exists():
            return
        rows = [row for number, row in enumerate(read_rows(self.path)) if wanted(number, row)]
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(partial, self.path)

    def _write(self, data: bytes) -> None:
        # Opened anew each time: a folder that was moved, or a disk that was full, is no trouble then.
        with open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                file.truncate(end)
                raise


def read_rows(path: Path) -> Iterator[Row]:
    """The whole rows of a file; a last row that a kill cut short is passed over."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)
                except ValueError:
                    log.warning(f"{path} holds a row that is not JSON; it is passed over")
