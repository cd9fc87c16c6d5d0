"""Captions as vectors by the words in them, for when no text encoder has been run."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH = 256
BUCKETS = 65536  # words of one bucket are not told apart
PIECE = 8192
_WORD = re.compile(r"\w+")


def word_vectors(captions: Sequence[str]) -> NDArray[np.float32]:
    """float32 [N, WIDTH]: random projection of the words' TF-IDF, so that captions of the same rare words are near.

    A function of the captions alone. A caption without words is a row of zeros.
    """
    buckets = [np.array([zlib.crc32(w.encode()) % BUCKETS for w in _words(c)], np.int32) for c in captions]
    seen: Counter[int] = Counter()
    for words in buckets:
        seen.update(set(words.tolist()))
    weight = np.zeros(BUCKETS, np.float32)
    for bucket, count in seen.items():
        weight[bucket] = np.log((1 + len(captions)) / count)
    signs = 2 * np.random.default_rng(0).integers(0, 2, size=(BUCKETS, WIDTH), dtype=np.int8) - 1
    out = np.zeros((len(captions), WIDTH), np.float32)
    for start in range(0, len(captions), PIECE):
        piece = buckets[start : start + PIECE]
        lengths = np.array([len(words) for words in piece])
        full = np.flatnonzero(lengths)
        if not len(full):
            continue
        words = np.concatenate(piece)
        begins = np.concatenate([[0], np.cumsum(lengths[full])[:-1]])
        out[start + full] = np.add.reduceat(signs[words] * weight[words][:, None], begins, axis=0)
    return out


def _words(caption: str) -> list[str]:
    return _WORD.findall(caption.lower())
