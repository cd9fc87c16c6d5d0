"""Weaving while training: clips -> woven Records, a pure function of (seed, epoch, index).

Owns which clips meet in an example, their order, and the frame budget. Where clips and clusters come from and what is
asked about them (the form) is handed in. Nothing is stored: an epoch is one permutation, a row is made when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from prismatic.data.rows import RecordRows
from prismatic.types import Medium, Record, Turn

RECENT = 1024  # woven rows kept


class Shown(NamedTuple):
    """What a form knows of one clip of an example. num_frames: frames shown of it. duration: seconds; None: unknown."""

    caption: str
    num_frames: int = 1
    duration: float | None = None


Form = Callable[[Sequence[Shown], str, np.random.Generator], tuple[str, str]]
"""(clips in the order in which they are shown, prompt, randomness) -> (question without placeholders, answer)."""
Clusters = Callable[[int, int], NDArray[np.integer]]
"""(epoch, L) -> clip numbers [C, size]: clips of one row may meet. size is a multiple of L, or C is 1."""


def split_frames(total: int, videos: int, flag: str = "--total_frames") -> list[int]:
    """Frames of each of `videos` videos, `total` together; where they do not divide, the first ones get one more.

    Raises ValueError naming `flag` when a video would get none.
    """
    if total < videos:
        raise ValueError(
            f"{flag} {total} leaves a video without a frame in clusters of {videos}; pass {flag} {videos} or more"
        )
    return [total // videos + (i < total % videos) for i in range(videos)]


@dataclass(frozen=True)
class Recipe:
    """How clips become an example. total_frames: frames of an example over all its clips. prompts: one is drawn for
    each example. curriculum: L of the first epochs; videos_per_example: L of all later ones.
    """

    form: Form
    prompts: tuple[str, ...]
    total_frames: int
    videos_per_example: int
    curriculum: tuple[int, ...] = ()

    def videos(self, epoch: int) -> int:
        """L, the clips of an example of an epoch."""
        return self.curriculum[epoch] if epoch < len(self.curriculum) else self.videos_per_example


class WovenEpochs(Sequence[Sequence[Record]]):
    """The rows of any epoch, each epoch woven anew. Its length counts the epochs that differ in L.

    Args:
        clips: a Record with one medium, a question and its caption for each clip.
        clusters: which clips may meet. durations: seconds of each clip, NaN where unknown; float [number of clips].
        name: where the clips come from, for error texts.

    Raises ValueError when an L has no room in the frame budget, or leaves no example.
    """

    def __init__(
        self,
        clips: Sequence[Record],
        clusters: Clusters,
        recipe: Recipe,
        *,
        seed: int,
        durations: NDArray[np.floating] | None = None,
        name: str = "",
    ) -> None:
        self.clips, self.recipe, self.seed, self.durations, self.name = clips, recipe, seed, durations, name
        self.clusters = clusters
        self._epochs: dict[int, WovenRows] = {}
        for epoch in range(len(self)):
            split_frames(recipe.total_frames, recipe.videos(epoch), "--dataset.weave.total_frames")
            if not len(self[epoch]):
                raise ValueError(
                    f"{name}: {len(clips)} clips make no example of --dataset.weave.videos_per_example "
                    f"{recipe.videos(epoch)}"
                )

    def __len__(self) -> int:
        return len(self.recipe.curriculum) + 1

    @overload
    def __getitem__(self, epoch: int) -> WovenRows: ...

    @overload
    def __getitem__(self, epoch: slice) -> list[WovenRows]: ...

    def __getitem__(self, epoch: int | slice) -> WovenRows | list[WovenRows]:
        """Rows of an epoch, for any epoch from 0 on; the same in every process."""
        if isinstance(epoch, slice):
            return [self[e] for e in range(*epoch.indices(len(self)))]
        if epoch < 0:
            raise IndexError(f"epoch {epoch}")
        if epoch not in self._epochs:
            # The epoch that runs and, at its end, the next one; more would be memory for nothing.
            self._epochs = {e: rows for e, rows in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = WovenRows(self, epoch, self.clusters(epoch, self.recipe.videos(epoch)))
        return self._epochs[epoch]

    def __iter__(self) -> Iterator[WovenRows]:
        # Without this, iteration would never end: any epoch has rows.
        return (self[epoch] for epoch in range(len(self)))


class WovenRows(RecordRows):
    """The examples of one epoch, each made when it is asked for. clusters: clip numbers [C, size]."""

    def __init__(self, epochs: WovenEpochs, epoch: int, clusters: NDArray[np.integer]) -> None:
        self._all, self._epoch, self._clusters = epochs, epoch, clusters
        self._size = epochs.recipe.videos(epoch)
        self._recent: dict[int, Record] = {}
        self._frames = split_frames(epochs.recipe.total_frames, self._size, "--dataset.weave.total_frames")

    def __len__(self) -> int:
        return len(self._clusters) * (self._clusters.shape[1] // self._size)

    @cached_property
    def groups(self) -> NDArray[np.integer]:
        """Clip numbers [examples, L]: each cluster shuffled and cut into pieces of L; a rest takes no part."""
        rng = np.random.default_rng([self._all.seed % 2**32, self._epoch])
        shuffled = rng.permuted(self._clusters, axis=1)
        kept = shuffled.shape[1] - shuffled.shape[1] % self._size
        return np.ascontiguousarray(shuffled[:, :kept]).reshape(-1, self._size)

    def _record(self, at: int) -> Record:
        # A row is asked for twice when it is read by the process that has put its batch together by length.
        if at not in self._recent:
            if len(self._recent) >= RECENT:
                self._recent.clear()
            self._recent[at] = self._weave(at)
        return self._recent[at]

    def _weave(self, at: int) -> Record:
        numbers = self.groups[at].tolist()
        clips = [self._all.clips[number] for number in numbers]
        recipe = self._all.recipe
        rng = np.random.default_rng([self._all.seed % 2**32, self._epoch, at])
        prompt = recipe.prompts[int(rng.integers(len(recipe.prompts)))] if len(recipe.prompts) > 1 else ""
        question, answer = recipe.form(self._shown(numbers, clips), prompt or recipe.prompts[0], rng)
        ids = ", ".join(clip.id for clip in clips)
        return Record(
            id=ids,
            media=tuple(_part(clip.media[0], count) for clip, count in zip(clips, self._frames, strict=True)),
            turns=(Turn("human", "<video>\n" * len(clips) + question), Turn("gpt", answer)),
            source=f"{self._all.name}, woven example {at + 1} of epoch {self._epoch} (clips {ids})",
        )

    def _shown(self, numbers: list[int], clips: list[Record]) -> list[Shown]:
        known = self._all.durations
        seconds = [None] * len(numbers) if known is None else [float(known[n]) for n in numbers]
        return [
            Shown(clip.turns[-1].text, count, None if length is None or np.isnan(length) else length)
            for clip, count, length in zip(clips, self._frames, seconds, strict=True)
        ]


def _part(medium: Medium, count: int) -> Medium:
    """`count` frames of a clip: asked of a video; of listed frames a uniform choice; an image is one frame anyway."""
    if medium.kind == "video":
        return replace(medium, num_frames=count)
    if medium.kind == "frames":
        places = np.linspace(0, len(medium.paths) - 1, count).astype(int).tolist()
        return replace(medium, paths=tuple(medium.paths[place] for place in places))
    return medium
