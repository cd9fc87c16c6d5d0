"""Rows told apart by how many clips they have, so that a loss can be measured for each number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prismatic.data.rows import RecordRows
from prismatic.types import Record


class PickedRows(RecordRows):
    """Some of other rows, in their order."""

    def __init__(self, records: Sequence[Record], places: NDArray[np.int64]) -> None:
        self._records, self._places = records, places

    def __len__(self) -> int:
        return len(self._places)

    def _record(self, at: int) -> Record:
        return self._records[int(self._places[at])]


def by_clips(records: Sequence[Record]) -> dict[int, Sequence[Record]]:
    """The rows with each number of clips, fewest first. Every row is looked at once."""
    counts = np.fromiter((len(record.media) for record in records), np.int64, len(records))
    found = np.unique(counts)
    if len(found) == 1:
        return {int(found[0]): records}
    return {int(count): PickedRows(records, np.flatnonzero(counts == count)) for count in found}
