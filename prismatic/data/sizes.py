"""What is known of the length of rows without making them: two numbers a row, for the plan of every step."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from prismatic.types import Medium, Record

Shape = tuple[tuple[str, int], ...]
"""The media of a row: (kind, frames that it lists or asks for; 0 for the model's own number) of each."""

_UNIT = 1024
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class RowSizes:
    """text: bytes of all messages in UTF-8, int32 [n]. shape: int32 [n], the place in `shapes` of the row's media."""

    text: NDArray[np.int32]
    shape: NDArray[np.int32]
    shapes: list[Shape]


class SizeTable:
    """Collects the sizes of rows, one after another."""

    def __init__(self) -> None:
        self._text, self._shape = array("i"), array("i")
        self._shapes: dict[Shape, int] = {}

    def add(self, record: Record | None) -> None:
        """The next row; None for one that is none."""
        shape = tuple((m.kind, _frames(m)) for m in record.media) if record is not None else ()
        self._text.append(min(text_bytes(record), _LARGEST) if record is not None else 0)
        self._shape.append(self._shapes.setdefault(shape, len(self._shapes)))

    def done(self) -> RowSizes:
        """The sizes of all rows so far."""
        text, shape = (np.array(column, np.int32) for column in (self._text, self._shape))
        return RowSizes(text, shape, list(self._shapes))


def sizes_of(records: Iterable[Record]) -> RowSizes:
    """The sizes of records."""
    table = SizeTable()
    for record in records:
        table.add(record)
    return table.done()


def text_bytes(record: Record) -> int:
    """Bytes of the messages: nearer to tokens than characters are, in scripts other than Latin."""
    return sum(len(t.text) if t.text.isascii() else len(t.text.encode("utf-8", "replace")) for t in record.turns)


def media_of(shape: Shape) -> list[Medium]:
    """Media of no file that count as those of a row of this shape."""
    return [Medium(kind, ("",) * (frames or 1), frames or None) for kind, frames in shape]  # type: ignore[arg-type]


def _frames(medium: Medium) -> int:
    return medium.num_frames or 0 if medium.kind == "video" else len(medium.paths)


@dataclass(frozen=True)
class TextFit:
    """Tokens of a text from its bytes: (slope * bytes + base) / 1024.

    Whole numbers, not floats: processes on unlike machines must come to the same plan, to the last bit.
    """

    slope: int = _UNIT // 4  # English in a vocabulary of 32 000 and more
    base: int = _UNIT

    def tokens(self, text: NDArray[np.int32]) -> NDArray[np.int64]:
        """Tokens int64 [n] of texts with int32 [n] bytes."""
        return (text.astype(np.int64) * self.slope + self.base) // _UNIT

    @classmethod
    def of(cls, pairs: list[tuple[int, int]]) -> TextFit:
        """Least squares through pairs of (bytes, tokens); the usual figures where too little can be told from them."""
        count, x, y = len(pairs), sum(b for b, _ in pairs), sum(t for _, t in pairs)
        spread = count * sum(b * b for b, _ in pairs) - x * x
        if count < 8 or not spread:
            return cls()
        slope = Fraction(count * sum(b * t for b, t in pairs) - x * y, spread)
        if slope <= 0:
            return cls(0, _UNIT * y // count)
        return cls(int(slope * _UNIT), int((y - slope * x) / count * _UNIT))
