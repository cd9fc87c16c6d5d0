"""Which frames of a clip are taken: pure functions (facts of the clip, number of frames, rng) -> frame numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from prismatic.registry import Registry

if TYPE_CHECKING:
    from prismatic.video.clip import Clip

log = logging.getLogger(__name__)

Short = Literal["repeat", "fewer", "error"]


@dataclass(frozen=True)
class ClipFacts:
    """What a sampler may know of a clip.

    num_frames: at least 1. fps: mean frames per second, above 0. timestamps: float64 [num_frames] seconds, ascending;
    None means evenly spaced at fps. keyframes: int64, ascending numbers of the frames that need no other to be decoded;
    None means that all are (pictures), none at all that the file does not say.
    """

    num_frames: int
    fps: float = 1.0
    timestamps: np.ndarray | None = None
    keyframes: np.ndarray | None = None

    @staticmethod
    def of(clip: Clip) -> ClipFacts:
        """Of an open clip."""
        return ClipFacts(len(clip), clip.fps, clip.timestamps, clip.keyframes)

    def seconds(self) -> np.ndarray:
        """Time of each frame from the first one on, float64 [num_frames]."""
        if self.timestamps is None:
            return np.arange(self.num_frames, dtype=np.float64) / self.fps
        return np.asarray(self.timestamps, np.float64) - float(self.timestamps[0])


Sampler = Callable[[ClipFacts, int, np.random.Generator], np.ndarray]

SAMPLERS: Registry[Sampler] = Registry("sampler", flag="--dataset.sampler")
"""Id -> (facts, T, rng) -> ascending int64 frame numbers, at most T. Called with 1 <= T <= facts.num_frames."""


def sample(
    facts: ClipFacts,
    num_frames: int,
    sampler: str,
    rng: np.random.Generator,
    short: Short = "repeat",
) -> np.ndarray:
    """Numbers of the frames to take, int64 [T], ascending.

    Of a clip with fewer than `num_frames` frames the sampler is asked for as many as there are, and `short` says what
    follows. "repeat": these are repeated evenly to T = num_frames, as int(linspace(0, total - 1, T)) does by itself: 3
    frames for 8 give 0 0 0 0 1 1 1 2. "fewer": T is their number. "error": ValueError. A sampler that takes fewer
    frames than it may (`fps`) is left alone.

    Raises ValueError for a clip without frames, num_frames below 1, an unknown sampler, or by policy.
    """
    total = facts.num_frames
    if total < 1:
        raise ValueError("a clip without frames cannot be sampled")
    if num_frames < 1:
        raise ValueError(f"--model.num_frames must be 1 or more, got {num_frames}")
    if short not in ("repeat", "fewer", "error"):
        raise ValueError(f"--dataset.short_clips must be repeat, fewer or error, got '{short}'")
    if total < num_frames and short == "error":
        raise ValueError(
            f"the clip has {total} frames, {num_frames} are asked for; lower --model.num_frames, or use "
            "--dataset.short_clips repeat or fewer"
        )
    chosen = np.asarray(SAMPLERS.get(sampler)(facts, min(num_frames, total), rng), np.int64)
    if short == "repeat" and len(chosen) == total < num_frames:
        return chosen[_linspace(total, num_frames)]
    return chosen


def _linspace(total: int, count: int) -> np.ndarray:
    return np.linspace(0, total - 1, count).astype(np.int64)


@SAMPLERS.register("uniform")
def uniform(facts: ClipFacts, count: int, rng: np.random.Generator) -> np.ndarray:
    """First and last frame and evenly between, fractions cut off: int(linspace(0, total - 1, count)); one: frame 0."""
    return _linspace(facts.num_frames, count)


@SAMPLERS.register("uniform-midpoint")
def uniform_midpoint(facts: ClipFacts, count: int, rng: np.random.Generator) -> np.ndarray:
    """The middle of each of `count` equal stretches, as Video-ChatGPT rounds it.

    With s = (total - 1) / count, frame i is (round(s * i) + round(s * (i + 1))) // 2, rounding halves to even.
    A frame may come twice when `count` is nearly the total.
    """
    borders = np.round((facts.num_frames - 1) / count * np.arange(count + 1)).astype(np.int64)
    return (borders[:-1] + borders[1:]) // 2


@SAMPLERS.register("keyframes")
def keyframes(facts: ClipFacts, count: int, rng: np.random.Generator) -> np.ndarray:
    """The keyframes nearest to the frames of `uniform`, each once: no other frame needs to be decoded for them.

    A video with fewer than `count` keyframes is sampled by `uniform`, which the log says once; so are pictures.
    """
    even, keys = _linspace(facts.num_frames, count), facts.keyframes
    if keys is None:
        return even
    if len(keys) < count:
        _say_few_keyframes(count)
        return even
    after = np.searchsorted(keys, even).clip(1, len(keys) - 1) if len(keys) > 1 else np.zeros(1, np.int64)
    nearest = after - (even - keys[after - 1] <= keys[after] - even)
    places = np.arange(count)
    # Each at least one after the one before it, and early enough that the rest still has one each.
    nearest = np.maximum.accumulate(nearest - places) + places
    return keys[np.minimum(nearest, len(keys) - count + places)].astype(np.int64)


@cache
def _say_few_keyframes(count: int) -> None:
    log.warning(
        "--dataset.sampler keyframes: a video has fewer than %d keyframes; of it, and of all such, frames are taken as "
        "by --dataset.sampler uniform",
        count,
    )


@SAMPLERS.register("random")
def random(facts: ClipFacts, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different frames in order of time, each set equally likely."""
    return np.sort(rng.choice(facts.num_frames, size=count, replace=False)).astype(np.int64)


@SAMPLERS.register("random-segment")
def random_segment(facts: ClipFacts, count: int, rng: np.random.Generator) -> np.ndarray:
    """One frame at random out of each of `count` equal stretches: even cover, other frames each time."""
    borders = facts.num_frames * np.arange(count + 1) // count
    return rng.integers(borders[:-1], borders[1:]).astype(np.int64)


def at_rate(rate: float) -> Sampler:
    """A sampler of `rate` frames per second from the first frame on; more than fit in the bound: evenly over the clip.

    Times decide, so a variable frame rate is no matter: each is the frame on show at its moment.
    """

    def pick(facts: ClipFacts, count: int, rng: np.random.Generator) -> np.ndarray:
        seconds = facts.seconds()
        moments = np.arange(0.0, seconds[-1] + 0.5 / facts.fps, 1.0 / rate)
        if len(moments) > count:
            return _linspace(facts.num_frames, count)
        # A hair later than the moment: 0.1 * 3 must still be found in a list of times that were divided.
        return np.unique(np.searchsorted(seconds, moments + 1e-6, side="right") - 1).astype(np.int64)

    pick.__doc__ = f"{rate:g} frame(s) a second from the first on, at most `count`, then evenly over the clip."
    return pick


SAMPLERS.add("fps", at_rate(1.0))
SAMPLERS.add("fps-2", at_rate(2.0))
SAMPLERS.add("fps-4", at_rate(4.0))
