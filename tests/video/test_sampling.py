"""Samplers are pure, ascending and inside the clip; the formulas are the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from prismatic.registry import UnknownIdError
from prismatic.video.sampling import SAMPLERS, ClipFacts, _say_few_keyframes, sample


@pytest.fixture(autouse=True)
def said_nothing_yet() -> None:
    _say_few_keyframes.cache_clear()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("total", [1, 2, 7, 16, 300])
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_every_sampler(name: str, total: int, count: int) -> None:
    facts = ClipFacts(total, 25.0)
    for short in ("repeat", "fewer"):
        chosen = sample(facts, count, name, rng(3), short)
        assert chosen.dtype == np.int64
        assert (np.diff(chosen) >= 0).all()
        assert chosen.min() >= 0
        assert chosen.max() < total
        assert 1 <= len(chosen) <= count
        assert np.array_equal(chosen, sample(facts, count, name, rng(3), short)), "not a function of its arguments"
        if short == "fewer" and name != "uniform-midpoint":
            assert (np.diff(chosen) > 0).all(), "a frame twice"
        if not name.startswith("fps") and (short == "repeat" or total >= count):
            assert len(chosen) == count


@pytest.mark.parametrize(("total", "count"), [(243, 8), (16, 4), (10, 10), (3, 8), (1, 4), (100, 1)])
def test_uniform_is_linspace_cut_off(total: int, count: int) -> None:
    expected = np.linspace(0, total - 1, count).astype(int)
    assert sample(ClipFacts(total), count, "uniform", rng()).tolist() == expected.tolist()


def test_midpoint_is_video_chatgpts_formula() -> None:
    total, count = 250, 100
    step = float(total - 1) / count
    expected = [(int(np.round(step * i)) + int(np.round(step * (i + 1)))) // 2 for i in range(count)]
    assert sample(ClipFacts(total), count, "uniform-midpoint", rng()).tolist() == expected


def test_short_clips() -> None:
    facts = ClipFacts(3)
    assert sample(facts, 8, "uniform", rng()).tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert sample(facts, 8, "random", rng()).tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert sample(facts, 8, "uniform", rng(), "fewer").tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"3 frames, 8 are asked for; lower --model.num_frames.*--dataset.short_clips"):
        sample(facts, 8, "uniform", rng(), "error")
    assert sample(facts, 3, "uniform", rng(), "error").tolist() == [0, 1, 2]


def test_rate_goes_by_the_clock() -> None:
    assert sample(ClipFacts(100, 25.0), 16, "fps", rng()).tolist() == [0, 25, 50, 75]
    assert sample(ClipFacts(100, 25.0), 16, "fps-2", rng()).tolist() == [0, 12, 25, 37, 50, 62, 75, 87]
    assert sample(ClipFacts(100, 25.0), 3, "fps", rng()).tolist() == [0, 49, 99], "over the bound: the whole clip"
    uneven = ClipFacts(5, 1.25, np.asarray([7.0, 7.1, 7.2, 9.0, 10.2]))
    assert sample(uneven, 5, "fps", rng()).tolist() == [0, 2, 3], "frame 2 is on show for nearly two seconds"


def test_random_uses_its_generator_only() -> None:
    facts = ClipFacts(1000)
    np.random.seed(0)
    first = sample(facts, 8, "random", rng(1))
    np.random.seed(1)
    assert np.array_equal(first, sample(facts, 8, "random", rng(1)))
    assert not np.array_equal(first, sample(facts, 8, "random", rng(2)))
    assert len(set(first.tolist())) == 8


def test_random_segment_covers_the_clip() -> None:
    for seed in range(20):
        chosen = sample(ClipFacts(100), 4, "random-segment", rng(seed))
        assert (chosen // 25).tolist() == [0, 1, 2, 3]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"--model\.num_frames must be 1 or more, got 0"):
        sample(ClipFacts(5), 0, "uniform", rng())
    with pytest.raises(ValueError, match="without frames"):
        sample(ClipFacts(0), 4, "uniform", rng())
    with pytest.raises(ValueError, match=r"--dataset\.short_clips must be"):
        sample(ClipFacts(5), 4, "uniform", rng(), "repeat-last")  # type: ignore[arg-type]
    with pytest.raises(UnknownIdError, match=r"--dataset\.sampler; did you mean 'uniform'"):
        sample(ClipFacts(5), 4, "unifrom", rng())


@pytest.mark.parametrize(
    ("keys", "count", "expected"),
    [
        ([0, 60, 120, 180, 240], 4, [0, 120, 180, 240]),  # nearest to 0 99 199 299
        ([0, 60, 120, 180, 240], 1, [0]),
        ([0, 60, 120, 180, 240], 5, [0, 60, 120, 180, 240]),
        ([0, 4, 8, 12, 16, 20], 4, [0, 12, 16, 20]),  # all near the start: none twice
        ([280, 284, 288, 292], 3, [280, 284, 292]),
        ([150], 1, [150]),
    ],
)
def test_keyframes_are_the_nearest_ones_and_none_twice(keys: list[int], count: int, expected: list[int]) -> None:
    facts = ClipFacts(300, 25.0, keyframes=np.asarray(keys))
    assert sample(facts, count, "keyframes", rng()).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_keyframes_of_any_file(seed: int) -> None:
    keys = np.sort(rng(seed).choice(300, 30, replace=False))
    for count in range(1, 31):
        chosen = sample(ClipFacts(300, keyframes=keys), count, "keyframes", rng())
        assert len(chosen) == count and (np.diff(chosen) > 0).all() and np.isin(chosen, keys).all()


def test_too_few_keyframes_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for keys in ([0, 250], []):
        facts = ClipFacts(300, keyframes=np.asarray(keys, np.int64))
        assert sample(facts, 4, "keyframes", rng()).tolist() == sample(facts, 4, "uniform", rng()).tolist()
    assert [r.getMessage() for r in caplog.records] == [
        "--dataset.sampler keyframes: a video has fewer than 4 keyframes; of it, and of all such, frames are taken as "
        "by --dataset.sampler uniform"
    ]
