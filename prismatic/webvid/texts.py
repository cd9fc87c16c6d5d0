"""Many texts (ids, captions, paths) in one stretch of memory, and where one set of ids stands in another.

Ten million ids as a list of str with a dict of their places take 1.8 GB; as columns, 0.2 GB and no dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

Rows = NDArray[np.int64]
PIECE = 16384  # texts that are Python objects at a time


class Texts(Sequence[str]):
    """A sequence of str over an Arrow column; None counts as ""."""

    def __init__(self, column: pyarrow.Array | pyarrow.ChunkedArray) -> None:
        chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
        wide = [chunk.cast(pyarrow.large_string()) for chunk in chunks]  # 32-bit offsets end at 2 GiB of text
        array = wide[0] if len(wide) == 1 else pyarrow.concat_arrays(wide) if wide else _array([])
        self.array: pyarrow.Array = array.fill_null("") if array.null_count else array

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Of Python strings, taken as they come."""
        source = iter(texts)
        pieces = []
        while piece := list(islice(source, PIECE)):
            pieces.append(_array(piece))
        return cls(pyarrow.chunked_array(pieces, pyarrow.large_string()))

    @classmethod
    def columns(cls, rows: Iterable[tuple[str, ...]], count: int) -> tuple[Texts, ...]:
        """The columns of rows of `count` strings each, taken as they come."""
        source = iter(rows)
        pieces: list[list[pyarrow.Array]] = [[] for _ in range(count)]
        while piece := list(islice(source, PIECE)):
            for column, texts in zip(pieces, zip(*piece, strict=True), strict=True):
                column.append(_array(texts))
        return tuple(cls(pyarrow.chunked_array(column, pyarrow.large_string())) for column in pieces)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.array[index].to_pylist()
        return self.array[index].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self.array), PIECE):
            yield from self.array[start : start + PIECE].to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return bool(self.array.equals(other.array))
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: Rows | Sequence[int]) -> Texts:
        """Those of some rows, in their order."""
        return Texts(self.array.take(pyarrow.array(rows, pyarrow.int64())))

    def places(self, others: Texts) -> Rows:
        """For each of the others the first row that holds it here, -1 where none does; int64 [len(others)]."""
        found = pyarrow.compute.index_in(others.array, value_set=self.array)
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def has_repeats(self) -> bool:
        """Whether a text stands here twice."""
        return bool(pyarrow.compute.count_distinct(self.array).as_py() < len(self.array))


def read_lines(path: Path, flag: str) -> Texts:
    """The lines of a UTF-8 file. Raises ValueError naming `flag` when there is none."""
    if not path.is_file():
        raise ValueError(f"{flag} {path}: no such file")
    try:
        with path.open(encoding="utf-8-sig") as file:
            return Texts.of(line.rstrip("\n") for line in file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path}: not UTF-8 text ({error})") from error


def _array(texts: Sequence[str]) -> pyarrow.Array:
    return pyarrow.array(texts, pyarrow.large_string())
