"""Balanced clusters: exact sizes, like with like, the same for any number of threads, and odd vectors."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from prismatic.webvid.balanced import NORM, balanced_clusters, cohesion, quantise


def _vectors(count: int, dim: int, seed: int = 0, spread: float = 0.5) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Quantised vectors around directions of their own, eight about each, and the number of the direction."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((-(-count // 8), dim))
    belongs = rng.permutation(np.repeat(np.arange(len(directions)), 8)[:count])
    raw = directions[belongs] + spread * rng.standard_normal((count, dim))
    return quantise(raw.astype(np.float16), [str(i) for i in range(count)]), belongs


def _sizes(labels: NDArray[np.int64]) -> set[int]:
    return set(np.bincount(labels[labels >= 0]).tolist())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 16])
def test_sizes_are_exact_and_the_remainder_is_left_out(size: int) -> None:
    vectors, _ = _vectors(1003, 16)
    labels = balanced_clusters(vectors, size, seed=7)
    assert _sizes(labels) == {size}
    assert (labels < 0).sum() == 1003 % size
    assert sorted(set(labels[labels >= 0].tolist())) == list(range(1003 // size))


def test_what_belongs_together_is_found() -> None:
    vectors, belongs = _vectors(1600, 64, spread=0.2)
    labels = balanced_clusters(vectors, 8, seed=7)
    ideal, chance = cohesion(vectors, belongs), cohesion(vectors, np.arange(1600) // 8)
    found = cohesion(vectors, labels)
    assert found > chance + 0.9 * (ideal - chance)


def test_swaps_bring_more_than_cuts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = _vectors(1600, 32, spread=0.5)
    found = cohesion(vectors, balanced_clusters(vectors, 8, seed=7))
    monkeypatch.setattr("prismatic.webvid.balanced.MAX_SWEEPS", 0)
    assert found > cohesion(vectors, balanced_clusters(vectors, 8, seed=7)) + 0.02


def test_the_same_seed_gives_the_same_and_another_one_others() -> None:
    vectors, _ = _vectors(1600, 32)
    first = balanced_clusters(vectors, 8, seed=7)
    assert (balanced_clusters(vectors, 8, seed=7) == first).all()
    other = balanced_clusters(vectors, 8, seed=8)
    assert (other != first).any()
    assert abs(cohesion(vectors, other) - cohesion(vectors, first)) < 0.05


_THREADS = """
import hashlib, sys
import numpy as np
from prismatic.webvid.balanced import balanced_clusters, quantise
raw = np.random.default_rng(0).standard_normal((4001, 96)).astype(np.float32)
labels = balanced_clusters(quantise(raw, ["x"] * 4001), 8, seed=7)
print(hashlib.sha256(labels.tobytes()).hexdigest())
"""


def test_any_number_of_threads_gives_the_same_clusters() -> None:
    found = set()
    for threads in ("1", "2", "4"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", _THREADS], env=env, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_the_order_of_summation_does_not_matter() -> None:
    """The reason for the above: products of quantised vectors are exact in float32."""
    vectors, _ = _vectors(512, 300)
    shuffled = np.random.default_rng(1).permutation(300)
    products = vectors @ vectors.T
    assert (products == vectors[:, shuffled] @ vectors[:, shuffled].T).all()
    assert (products == vectors.astype(np.float64) @ vectors.T.astype(np.float64)).all()


def test_odd_vectors() -> None:
    same = quantise(np.ones((20, 4), np.float32), ["x"] * 20)
    assert _sizes(balanced_clusters(same, 4, seed=7)) == {4}
    zeros = quantise(np.zeros((9, 4), np.float16), ["x"] * 9)
    assert _sizes(balanced_clusters(zeros, 4, seed=7)) == {4}
    assert cohesion(zeros, balanced_clusters(zeros, 4, seed=7)) == 0.0
    large = quantise(np.array([[60000.0, 60000.0], [1e-7, 0.0]], np.float16), ["a", "b"])
    assert np.abs(np.linalg.norm(large, axis=1) - NORM).max() < 1.0
    with pytest.raises(ValueError, match=r"video 'b' \(row 1\) is not finite"):
        quantise(np.array([[1.0], [np.nan]], np.float32), ["a", "b"])


def test_cohesion_worked_out_by_hand() -> None:
    vectors = quantise(np.array([[1, 0], [0, 1], [1, 0], [1, 0], [5, 5]], np.float32), list("abcde"))
    labels = np.array([0, 0, 1, 1, -1])
    assert cohesion(vectors, labels) == pytest.approx((2 * np.sqrt(0.5) + 2) / 4, abs=1e-3)
