"""Captions as vectors by their words: a function of the captions alone, whatever slices it is read in."""

from __future__ import annotations

import numpy as np
import pytest

from prismatic.webvid import words
from prismatic.webvid.words import WIDTH, WordVectors

CAPTIONS = ["A red car.", "", "a red CAR", "the dog on the beach, the beach!", "...", "red", "a dog"]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_captions_of_the_same_words_are_one_vector() -> None:
    vectors = WordVectors(CAPTIONS)
    rows = vectors[:]
    assert vectors.shape == rows.shape == (len(vectors), WIDTH) == (7, 256)
    assert (rows[0] == rows[2]).all() and not rows[[1, 4]].any()
    assert _cosine(rows[0], rows[5]) > _cosine(rows[0], rows[6])


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_any_slice_and_any_piece_give_the_same(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WordVectors(CAPTIONS)[:]
    monkeypatch.setattr(words, "PIECE", piece)
    vectors = WordVectors(CAPTIONS)
    assert (vectors[:] == whole).all()
    for first in range(8):
        for last in range(10):
            assert (vectors[first:last] == whole[first:last]).all()
    assert len(WordVectors([])[:]) == 0
