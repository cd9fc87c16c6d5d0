"""Rows of records that are made when they are asked for: the part of a sequence that all of them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from prismatic.data.sizes import RowSizes
from prismatic.types import Record


class RecordRows(Sequence[Record]):
    """A sequence of records over `_record(at)`; a slice of it is a list. sizes: of all rows, where they are known."""

    sizes: RowSizes | None = None

    @abstractmethod
    def _record(self, at: int) -> Record:
        """The record at a place from 0 to len - 1."""

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """One record, or a list of those of a slice. Raises IndexError."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._record(at)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
