"""Records of large annotation files: made from the file when they are asked for, so that a row costs no memory."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.data.annotation_files import AnnotationError, Names, Part, RawRow, raw_row
from prismatic.data.media_paths import MediaRoot
from prismatic.data.row_index import RowIndex, open_index, state_of
from prismatic.data.rows import RecordRows
from prismatic.data.schemas import parse_row
from prismatic.data.sizes import RowSizes, Shape
from prismatic.types import Record


class FileRows(Sequence[RawRow]):
    """The rows of a file with an index, read one at a time."""

    def __init__(self, path: Path, names: Names, index: RowIndex) -> None:
        self.path, self.names, self.index = path, names, index

    @classmethod
    def open(cls, path: Path, names: Names, root: MediaRoot) -> FileRows | None:
        """The rows of a large file; None for a small one, or one that has to be read whole. Raises AnnotationError."""
        meaning = json.dumps([root.root, names.columns, names.tags], sort_keys=True)
        index = open_index(path, meaning, lambda n, value: parse_row(raw_row(value, path, n, names), root))
        return None if index is None else cls(path, names, index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, at: int) -> RawRow:  # type: ignore[override]  # no slices: a Part says which rows are wanted
        start, size = int(self.index.start[at]), int(self.index.size[at])
        # Of the file as it was when the run began, in every process that was forked since; no place in it is shared.
        data = os.pread(self._file.fileno(), size, start)
        try:
            value = json.loads(data.decode("utf-8"))
        except ValueError as error:
            raise AnnotationError(f"{self.path}, row {at + 1}: {self._changed()}") from error
        return raw_row(value, self.path, at, self.names)

    @cached_property
    def _file(self) -> Any:
        file = self.path.open("rb", buffering=0)
        if state_of(self.path) != self.index.state:
            raise AnnotationError(f"{self.path}: {self._changed()}")
        return file

    def _changed(self) -> str:
        return "the file has changed since the run began; start it again"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}


class FileRecords(RecordRows):
    """The chosen rows of a file as records. Raises AnnotationError when one of them is broken."""

    def __init__(self, rows: FileRows, chosen: Sequence[int], root: MediaRoot) -> None:
        self._rows, self._root = rows, root
        self._chosen = chosen if isinstance(chosen, range) else np.array(chosen, np.int64)
        wanted = chosen if isinstance(chosen, range) else set(chosen)
        for row in rows.index.broken:
            if row in wanted:
                parse_row(rows[row], root)

    def __len__(self) -> int:
        return len(self._chosen)

    def _record(self, at: int) -> Record:
        return parse_row(self._rows[int(self._chosen[at])], self._root)

    @property
    def sizes(self) -> RowSizes:  # type: ignore[override]
        """Of the chosen rows: views of the index where they follow each other."""
        found, chosen = self._rows.index.sizes, self._chosen
        if isinstance(chosen, range):
            at: Any = slice(chosen.start, chosen.stop)
        else:
            at = chosen
        return RowSizes(found.text[at], found.shape[at], found.shapes)


class JoinedRecords(RecordRows):
    """Records of several files after each other."""

    def __init__(self, parts: Sequence[RecordRows]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        self.sizes = _joined([part.sizes for part in parts])

    def __len__(self) -> int:
        return self._ends[-1]

    def _record(self, at: int) -> Record:
        number = bisect_right(self._ends, at)
        return self._parts[number][at - (self._ends[number - 1] if number else 0)]


def _joined(sizes: list[RowSizes | None]) -> RowSizes | None:
    shapes: dict[Shape, int] = {}
    texts, numbers = [], []
    for one in sizes:
        if one is None:
            return None
        renamed = np.array([shapes.setdefault(shape, len(shapes)) for shape in one.shapes] or [0], np.int32)
        texts.append(one.text)
        numbers.append(renamed[one.shape])
    return RowSizes(np.concatenate(texts), np.concatenate(numbers), list(shapes))


def large_file(part: Part) -> FileRows | None:
    """The rows of a part that are read one at a time; None for one in memory."""
    return part.rows if isinstance(part.rows, FileRows) else None
