"""The order of an epoch: every row once, the same everywhere, any part of it in no time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from prismatic.data import order
from prismatic.data.order import EpochOrder, Scrambled


def _whole(*args: object, **options: object) -> tuple[np.ndarray, np.ndarray]:
    epoch = EpochOrder(*args, **options)  # type: ignore[arg-type]
    steps = [epoch.step(number) for number in range(len(epoch))]
    return np.concatenate([rows for rows, _ in steps]), np.concatenate([counted for _, counted in steps])


@pytest.mark.parametrize("whole", [1 << 20, 0])
def test_order_counts_every_row_once_and_fills_up_the_last_batch(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "SHUFFLED_WHOLE", whole)
    rows, counted = _whole(37, 3, 0, 8, shuffle=True)
    assert len(rows) == 40 and rows.dtype == np.int64 and counted.tolist() == [True] * 37 + [False] * 3
    assert sorted(rows[counted].tolist()) == list(range(37)) and rows[37:].tolist() == rows[:3].tolist()
    assert (rows == _whole(37, 3, 0, 8, shuffle=True)[0]).all()
    assert (rows[:24] == _whole(37, 3, 0, 12, shuffle=True)[0][:24]).all()  # another batch size cuts the same order
    for other in (_whole(37, 3, 1, 8, shuffle=True)[0], _whole(37, 4, 0, 8, shuffle=True)[0]):
        assert (rows != other).any()
    assert _whole(3, 3, 0, 8, shuffle=False)[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="without rows"):
        EpochOrder(0, 0, 0, 8, shuffle=True)


def test_order_of_small_sets_is_that_of_earlier_versions() -> None:
    expected = np.arange(1000)
    np.random.default_rng([7, 2]).shuffle(expected)
    assert (_whole(1000, 7, 2, 100, shuffle=True)[0] == expected).all()


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000, 65_537])
def test_scrambled_is_a_permutation(n: int) -> None:
    assert sorted(Scrambled(n, 1, 2)(np.arange(n)).tolist()) == list(range(n))


def test_scrambled_looks_random() -> None:
    n = 200_000
    found = Scrambled(n, 5, 0)(np.arange(n))
    other = Scrambled(n, 5, 1)(np.arange(n))
    for pair in ((np.arange(n), found), (found[:-1], found[1:]), (found, other)):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.01
    # The first tenth of an epoch takes from every part of the file alike: chi-square over 100 parts.
    counts = np.bincount(found[: n // 10] * 100 // n, minlength=100)
    assert ((counts - 200) ** 2 / 200).sum() < 150


def test_ten_million_rows_begin_anywhere_at_once() -> None:
    began = time.process_time()
    epoch = EpochOrder(10_000_000, 1, 3, 256, shuffle=True)
    rows, counted = epoch.step(len(epoch) - 1)
    assert time.process_time() - began < 0.05
    assert counted.sum() == 10_000_000 % 256 or counted.all()
    assert rows.max() < 10_000_000
