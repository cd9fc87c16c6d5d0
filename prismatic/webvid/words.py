"""Captions as vectors by the words in them, for when no text encoder has been run."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

WIDTH = 256
BUCKETS = 65536  # words of one bucket are not told apart
PIECE = 2048
_WORD = re.compile(r"\w+")


class WordVectors:
    """float32 [N, WIDTH]: random projection of the words' TF-IDF, so that captions of the same rare words are near.

    A function of the captions alone. A caption without words is a row of zeros. Rows are computed when a slice of them
    is asked for; in memory lie two bytes a word and eight a caption.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self.shape = (len(captions), WIDTH)
        self._ends = np.zeros(len(captions) + 1, np.int64)
        seen = np.zeros(BUCKETS, np.int64)
        words: list[NDArray[np.uint16]] = []
        source = iter(captions)
        for start in range(0, len(captions), PIECE):
            piece = [_buckets(caption) for caption in islice(source, PIECE)]
            lengths = np.array([len(buckets) for buckets in piece])
            words.append(np.array([bucket for buckets in piece for bucket in buckets], np.uint16))
            self._ends[start + 1 : start + 1 + len(piece)] = self._ends[start] + np.cumsum(lengths)
            # Of each caption a word counts once.
            pairs = np.unique(np.repeat(np.arange(len(piece)), lengths) * BUCKETS + words[-1])
            seen += np.bincount(pairs % BUCKETS, minlength=BUCKETS)
        self._words = np.concatenate(words) if words else np.zeros(0, np.uint16)
        self._weight = np.where(seen > 0, np.log((1 + len(captions)) / np.maximum(seen, 1)), 0).astype(np.float32)
        self._signs = 2 * np.random.default_rng(0).integers(0, 2, size=(BUCKETS, WIDTH), dtype=np.int8) - 1

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        first, last, _ = rows.indices(len(self))
        out = np.zeros((max(0, last - first), WIDTH), np.float32)
        for start in range(first, last, PIECE):
            ends = self._ends[start : min(start + PIECE, last) + 1]
            full = np.flatnonzero(np.diff(ends))
            if len(full):
                words = self._words[ends[0] : ends[-1]]
                weighted = self._signs[words] * self._weight[words][:, None]
                out[start - first + full] = np.add.reduceat(weighted, ends[:-1][full] - ends[0], axis=0)
        return out


def _buckets(caption: str) -> list[int]:
    return [zlib.crc32(word.encode()) % BUCKETS for word in _WORD.findall(caption.lower())]
