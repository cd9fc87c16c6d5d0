"""Plans: every example once, sums alike, memory never above that of padding, the same for any number of processes."""

from __future__ import annotations

import time

import numpy as np
import pytest

from prismatic.data.plan import alike, balanced, share_of

MIX = np.array([1, 4, 8, 16])


def _mixed(count: int, seed: int) -> np.ndarray:
    """Lengths of clips of 1, 4, 8 and 16 frames of 64 tokens with texts of 20 to 200 tokens."""
    rng = np.random.default_rng(seed)
    return rng.choice(MIX, count) * 64 + rng.integers(20, 200, count)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_example_once_and_no_group_larger_than_padding_would_make_it(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for lengths in (_mixed(8 * size, seed), rng.pareto(0.7, 8 * size).clip(0, 1e6).astype(np.int64) + 1):
        groups = balanced(lengths, 8)
        assert sorted(i for group in groups for i in group) == list(range(8 * size)) and all(groups)
        sums = [int(lengths[group].sum()) for group in groups]
        assert sums == sorted(sums, reverse=True) and sums[0] <= size * lengths.max()


def test_groups_and_processes_are_balanced_on_mixed_lengths() -> None:
    worst_turn, per_rank = [], []
    for seed in range(20):
        lengths = _mixed(128, seed)
        groups = balanced(lengths, 16)
        ranks = [[int(lengths[g].sum()) for g in share_of(groups, rank, 4)] for rank in range(4)]
        assert [len(sums) for sums in ranks] == [4] * 4
        worst_turn += [max(turn) / np.mean(turn) - 1 for turn in zip(*ranks, strict=True)]
        per_rank.append(max(map(sum, ranks)) / np.mean([sum(sums) for sums in ranks]) - 1)
    assert max(worst_turn) < 0.03 and max(per_rank) < 0.01


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_processes_share_the_same_groups(world_size: int) -> None:
    groups = balanced(_mixed(64, 3), 8)
    shares = [share_of(groups, rank, world_size) for rank in range(world_size)]
    assert sorted(map(tuple, groups)) == sorted(tuple(group) for share in shares for group in share)


def test_alike_puts_like_lengths_together() -> None:
    lengths = np.array([5, 1, 9, 5, 2, 8])
    assert alike(lengths, 3) == [[2, 5], [0, 3], [4, 1]]
    with pytest.raises(ValueError, match="6 examples cannot be cut into 4"):
        alike(lengths, 4)


def test_a_million_examples_are_planned_in_seconds() -> None:
    steps = [_mixed(512, seed) for seed in range(200)]
    began = time.process_time()
    for lengths in steps:
        balanced(lengths, 64)
    assert 512 * 200 / (time.process_time() - began) > 300_000  # alone on a core it is above a million
