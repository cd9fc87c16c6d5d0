"""Balanced clusters: exact sizes, like with like, the same for any number of threads, and odd vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from prismatic.webvid import balanced
from prismatic.webvid.balanced import balanced_clusters, diverse_clusters
from prismatic.webvid.quantised import NORM, cohesion, cohesion_bound, cohesion_floor, cohesions, quantise


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


def test_swaps_bring_more_than_peeling_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = _vectors(1600, 32, spread=1.0)
    found = cohesion(vectors, balanced_clusters(vectors, 8, seed=7))
    monkeypatch.setattr(balanced, "PASSES", 0)
    assert found > cohesion(vectors, balanced_clusters(vectors, 8, seed=7)) + 0.01


def test_the_same_seed_gives_the_same_and_another_one_others() -> None:
    vectors, _ = _vectors(1600, 32)
    first = balanced_clusters(vectors, 8, seed=7)
    assert (balanced_clusters(vectors, 8, seed=7) == first).all()
    other = balanced_clusters(vectors, 8, seed=8)
    assert (other != first).any()
    assert abs(cohesion(vectors, other) - cohesion(vectors, first)) < 0.05


_THREADS = """
import hashlib, os, sys
import numpy as np
from threadpoolctl import threadpool_info
from prismatic.webvid.balanced import balanced_clusters, quantise
import prismatic.webvid.balanced as b
b.WHOLE, b.PEEL_CELL, b.PASS_CELL = 2048, 2048, 1024
raw = np.random.default_rng(0).standard_normal((4001, 600)).astype(np.float32)
# __wrapped__: without the limit to one thread, which would hide a difference
labels = balanced_clusters.__wrapped__(quantise(raw, ["x"] * 4001), 8, seed=7)
used = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
assert used == min(int(sys.argv[1]), os.cpu_count()), used
print(hashlib.sha256(labels.tobytes()).hexdigest())
"""


def test_any_number_of_threads_gives_the_same_clusters() -> None:
    found = set()
    for threads in ("1", "2", "4"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", _THREADS, threads], env=env, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_the_order_of_summation_does_not_matter() -> None:
    """The reason for the above: products of quantised vectors are exact in float32."""
    vectors, _ = _vectors(512, 300)
    shuffled = np.random.default_rng(1).permutation(300)
    vectors = vectors.astype(np.float32)
    products = vectors @ vectors.T
    assert (products == vectors[:, shuffled] @ vectors[:, shuffled].T).all()
    assert (products == vectors.astype(np.float64) @ vectors.T.astype(np.float64)).all()


def test_odd_vectors() -> None:
    same = quantise(np.ones((20, 4), np.float32), ["x"] * 20)
    assert _sizes(balanced_clusters(same, 4, seed=7)) == {4}
    zeros = quantise(np.zeros((9, 4), np.float16), ["x"] * 9)
    assert _sizes(balanced_clusters(zeros, 4, seed=7)) == {4}
    assert cohesion(zeros, balanced_clusters(zeros, 4, seed=7)) == 0.0
    copies = quantise(np.repeat(np.eye(6, dtype=np.float32), [40, 1, 1, 1, 1, 1], axis=0), ["x"] * 45)
    assert _sizes(balanced_clusters(copies, 4, seed=7)) == {4}
    large = quantise(np.array([[60000.0, 60000.0], [1e-7, 0.0]], np.float16), ["a", "b"])
    assert np.abs(np.linalg.norm(large, axis=1) - NORM).max() < 1.0
    with pytest.raises(ValueError, match=r"video 'b' \(row 1\) is not finite"):
        quantise(np.array([[1.0], [np.nan]], np.float32), ["a", "b"])


def test_cohesion_worked_out_by_hand() -> None:
    vectors = quantise(np.array([[1, 0], [0, 1], [1, 0], [1, 0], [5, 5]], np.float32), list("abcde"))
    labels = np.array([0, 0, 1, 1, -1])
    assert cohesion(vectors, labels) == pytest.approx((2 * np.sqrt(0.5) + 2) / 4, abs=1e-3)
    assert cohesions(vectors, labels) == pytest.approx([np.sqrt(0.5), 1.0], abs=1e-3)


def test_cells_smaller_than_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 10 million vectors go through, at a size that can be tested."""
    monkeypatch.setattr(balanced, "WHOLE", 1024)
    monkeypatch.setattr(balanced, "PEEL_CELL", 512)
    monkeypatch.setattr(balanced, "PASS_CELL", 256)
    vectors, belongs = _vectors(4003, 64, spread=0.2)
    labels = balanced_clusters(vectors, 8, seed=7)
    assert _sizes(labels) == {8}
    assert (labels < 0).sum() == 3
    whole = np.where(belongs == belongs.max(), -1, belongs)
    ideal, chance = cohesion(vectors, whole), cohesion(vectors, np.sort(labels))
    assert cohesion(vectors, labels) > chance + 0.5 * (ideal - chance)


def test_clusters_that_a_border_cut_find_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups about directions that have nothing to do with each other: any border cuts some of them."""
    monkeypatch.setattr(balanced, "PEEL_CELL", 256)
    vectors, _ = _vectors(1024, 64, spread=0.15)
    found = {}
    for whole in (8, 512):
        monkeypatch.setattr(balanced, "WHOLE", whole)
        monkeypatch.setattr(balanced, "PASSES", 0)
        found[whole] = cohesion(vectors, balanced_clusters(vectors, 8, seed=7))
    assert found[512] > found[8] + 0.02, found


def test_no_clusters_exceed_the_bounds() -> None:
    vectors, belongs = _vectors(400, 32, spread=0.3)
    assert cohesion(vectors, belongs) <= cohesion_bound(vectors, 8, seed=0)
    assert cohesion_bound(vectors, 8, seed=0) < cohesion(vectors, belongs) + 0.1
    diverse = diverse_clusters(vectors, 8, seed=7)
    assert cohesion_floor(vectors) <= cohesion(vectors, diverse)


def test_diverse_clusters_are_less_alike_than_chance() -> None:
    vectors, _ = _vectors(803, 32, spread=0.3)
    labels = diverse_clusters(vectors, 8, seed=7)
    assert _sizes(labels) == {8}
    assert (labels < 0).sum() == 3
    chance = np.sort(labels)
    floor = cohesion_floor(vectors)
    assert cohesion(vectors, labels) - floor < 0.5 * (cohesion(vectors, chance) - floor)
    assert (diverse_clusters(vectors, 8, seed=7) == labels).all()


def test_hard_clusters_are_near_in_one_and_far_in_the_other() -> None:
    vectors, _ = _vectors(800, 64, spread=0.3)
    # Half of what a vector's neighbours say is what it says itself.
    words, _ = _vectors(800, 32, seed=1)
    near = balanced_clusters(vectors, 8, seed=7)
    said = words.copy()
    for group in range(0, 100):
        members = np.flatnonzero(near == group)
        said[members[:4]] = said[members[0]]
    plain, hard = near, balanced_clusters(vectors, 8, seed=7, far=said)
    assert cohesion(said, hard) < cohesion(said, plain) - 0.05
    assert cohesion(vectors, hard) > cohesion(vectors, np.arange(800) // 8) + 0.1


def test_a_scratch_file_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float16)
    in_memory = quantise(raw, ["x"] * 300)
    monkeypatch.setattr("prismatic.webvid.quantised.IN_MEMORY", 1000)
    on_disk = quantise(raw, ["x"] * 300, scratch=tmp_path)
    assert isinstance(on_disk, np.memmap)
    assert (on_disk == in_memory).all()
    assert not list(tmp_path.iterdir())
    rows = np.array([5, 2, 9])
    assert (quantise(raw, ["a", "b", "c"], rows) == in_memory[rows]).all()
