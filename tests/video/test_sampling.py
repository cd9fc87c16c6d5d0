"""Samplers are pure, ascending and inside the clip; the formulas are the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from prismatic.registry import UnknownIdError
from prismatic.video.sampling import SAMPLERS, ClipFacts, sample


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
