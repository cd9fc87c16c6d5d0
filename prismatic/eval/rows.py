"""From a record to what a model is asked: the question, the reference answer, and the pixels of its clips.

Broken media become Skip entries here; what happens to those is decided by `evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prismatic.data.dataset import Position
from prismatic.data.loader import StepLoader
from prismatic.data.watch import ReadingWatch
from prismatic.types import Medium, Record, Skip

Read = Callable[[Medium, np.random.Generator], torch.Tensor]
"""(medium, randomness) -> uint8 [T, 3, R, R]; raises ValueError or OSError when the file cannot give them."""


@dataclass(frozen=True)
class Question:
    """One row to answer. clips: uint8 [T, 3, R, R] for each medium, in the row's order; none for a text-only row.
    index: which of the records it is.
    """

    record: Record
    text: str
    reference: str
    clips: tuple[torch.Tensor, ...]
    index: int = 0

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return sum(len(clip) for clip in self.clips)


def question_of(record: Record) -> tuple[str, str]:
    """(question, reference answer): the first human turn and the answer to it.

    Raises ValueError naming the row when it has none.
    """
    if len(record.turns) < 2 or record.turns[0].role != "human" or record.turns[1].role != "gpt":
        raise ValueError(f"{record.source}: evaluation needs a human turn and a gpt turn with the reference answer")
    return record.turns[0].text, record.turns[1].text


def shown_question(text: str) -> str:
    """The question as a person reads it, without the places of its media."""
    return text.replace("<image>", "").replace("<video>", "").strip()


def with_num_frames(record: Record, num_frames: int) -> Record:
    """The record with `num_frames` frames of each video, whatever the row asks for; listed frames are thinned out to
    as many at even distances, where there are more.
    """

    def change(medium: Medium) -> Medium:
        if medium.kind == "video":
            return replace(medium, num_frames=num_frames)
        if medium.kind == "frames" and len(medium.paths) > num_frames:
            kept = np.linspace(0, len(medium.paths) - 1, num_frames).astype(int)
            return replace(medium, paths=tuple(medium.paths[i] for i in kept))
        return medium

    return replace(record, media=tuple(change(medium) for medium in record.media))


def asking_order(records: Sequence[Record]) -> list[int]:
    """Indices of records, those about the same media side by side, the longest first: batches then pad little, and
    what does not fit into memory shows at once. Rows of one length stay in their order.
    """
    together: dict[object, list[int]] = {}
    for index, record in enumerate(records):
        together.setdefault(record.media or index, []).append(index)

    def size(indices: list[int]) -> tuple[int, int]:
        media = records[indices[0]].media
        frames = sum(len(m.paths) if m.kind == "frames" else m.num_frames or 1 for m in media)
        return frames, max(len(question_of(records[i])[0]) for i in indices)

    groups = sorted(together.values(), key=size, reverse=True)
    return [i for group in groups for i in sorted(group, key=lambda i: -len(question_of(records[i])[0]))]


def read_batches(
    records: Sequence[Record], read: Read, *, batch_size: int, seed: int, num_workers: int, watch: ReadingWatch
) -> Iterator[list[Question | Skip]]:
    """All rows in `asking_order`, `batch_size` at a time; broken ones are Skip entries that say why.

    While one batch is answered the next are read by `num_workers` processes; with 0 a batch is read when it is asked
    for. watch: of these rows alone; ends processes that a decoder hangs, and says which rows take theirs down. Frames
    that a random sampler takes depend on (seed, row) alone. Other media are read once for all rows of a batch that are
    about them.
    """
    order = asking_order(records)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    loader = StepLoader(
        _Batches(records, read, seed, watch, batches),
        lambda found: found[0],
        num_examples=lambda _epoch: len(batches),
        global_batch_size=1,
        per_device_batch_size=1,
        num_workers=min(num_workers, len(batches)),
        shuffle=False,
        prefetch=1,
    )
    try:
        for (batch,) in loader.iterate(0):
            yield batch
    finally:
        loader.close()


@dataclass(frozen=True, eq=False)
class _Batches(Dataset[list[Question | Skip]]):
    """Rows by the number of their batch: what StepLoader takes for an example."""

    records: Sequence[Record]
    read: Read
    seed: int
    watch: ReadingWatch
    batches: Sequence[Sequence[int]]

    def __getitem__(self, position: Position) -> list[Question | Skip]:
        together = groupby(self.batches[position.index], key=lambda i: self.records[i].media or i)
        return [row for group in [list(g) for _, g in together] for row in self._group(group)]

    def lengths(self, rows: NDArray[np.int64], epoch: int = 0) -> NDArray[np.int64]:
        """All alike: a batch is a step."""
        return np.ones_like(rows)

    def _group(self, group: Sequence[int]) -> list[Question | Skip]:
        """Rows about the same media; where these take a process down, none of the rows can be read."""
        try:
            return self.watch.read(0, group[0], partial(_read_group, self.records, group, self.read, self.seed))
        except ValueError as error:
            found = [(i, self.records[i]) for i in group]
            return [Skip(record.id, record.source, str(error), epoch=0, index=i) for i, record in found]


def _read_group(records: Sequence[Record], group: Sequence[int], read: Read, seed: int) -> list[Question | Skip]:
    """Rows of these indices, all about the same media."""
    rows: list[Question | Skip] = []
    shared: tuple[torch.Tensor, ...] | str | None = None
    for index in group:
        record, found = records[index], shared
        if found is None:
            rng = np.random.default_rng([seed, index])
            untouched = rng.bit_generator.state
            found = _read_media(record, read, rng)
            # What was read without a random number is the same for every row.
            shared = found if rng.bit_generator.state == untouched else None
        if isinstance(found, str):
            rows.append(Skip(record.id, record.source, found, epoch=0, index=index))
        else:
            rows.append(Question(record, *question_of(record), found, index))
    return rows


def _read_media(record: Record, read: Read, rng: np.random.Generator) -> tuple[torch.Tensor, ...] | str:
    """The clips of a row, or what is wrong with them."""
    try:
        return tuple(read(medium, rng) for medium in record.media)
    except (ValueError, OSError) as error:
        return str(error)


def media_as_json(record: Record, media_root: Path) -> list[Any]:
    """Paths below the media root, as they are written to predictions.jsonl; a clip of listed frames is a list."""
    root = os.path.abspath(media_root)

    def shorten(path: str) -> str:
        return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path

    return [
        [shorten(path) for path in medium.paths] if medium.kind == "frames" else shorten(medium.paths[0])
        for medium in record.media
    ]
