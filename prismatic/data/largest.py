"""The largest forward pass of a run, from its rows alone: what decides how much memory the run takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prismatic.data import plan
from prismatic.data.order import EpochOrder
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Record

if TYPE_CHECKING:
    from prismatic.data.dataset import ClipDataset

MEASURED_EXAMPLES = 1 << 16  # Examples of the first epoch whose groups are looked at; under a second


@dataclass(frozen=True)
class ExampleSize:
    """frames: T of each clip. text, labels: positions of text, and those of them that are learned."""

    frames: tuple[int, ...]
    text: int
    labels: int


@dataclass(frozen=True)
class MicroBatch:
    """The sizes of a forward pass.

    rows, length: B and S of its ids. frames: T of each clip. labels: positions that are learned, of all rows.
    """

    rows: int
    length: int
    frames: tuple[int, ...]
    labels: int


@dataclass(frozen=True)
class Batching:
    """How examples meet: as the fields of StepLoader."""

    global_batch_size: int
    per_device_batch_size: int
    packing: bool
    seed: int = 0
    shuffle: bool = True


def largest_rows(dataset: Any, num_examples: int, batching: Batching) -> list[int]:
    """Rows of the forward pass with the most positions in the first epoch (its first 65536 examples), of any process.

    dataset: anything with `lengths(rows, epoch)`. Fillers are left out.
    """
    order = EpochOrder(num_examples, batching.seed, 0, batching.global_batch_size, batching.shuffle)
    groups = batching.global_batch_size // batching.per_device_batch_size
    best: tuple[int, list[int]] = (0, [])
    for step in range(min(len(order), max(1, MEASURED_EXAMPLES // batching.global_batch_size))):
        rows, counted = order.step(step)
        lengths = np.where(counted, dataset.lengths(rows, 0), 1)
        planned = plan.balanced(lengths, groups) if batching.packing else plan.alike(lengths, groups)
        for members in planned:
            taken = lengths[members]
            positions = int(taken.sum() if batching.packing else taken.max() * len(taken))
            if positions > best[0]:
                best = positions, [int(rows[i]) for i in members if counted[i]]
    return best[1]


def size_of(dataset: ClipDataset, record: Record) -> ExampleSize:
    """The sizes of a row. Raises ValueError for one that cannot be trained on."""
    tokens = dataset.tokens_of(record)
    return ExampleSize(
        frames=tuple(dataset.read.count(medium) for medium in record.media),
        text=len(tokens.input_ids) - tokens.input_ids.count(VISUAL_SLOT),
        labels=len(tokens.labels) - tokens.labels.count(IGNORE_INDEX),
    )


def micro_batch(sizes: Sequence[ExampleSize], tokens_per_clip: Callable[[int], int], packing: bool) -> MicroBatch:
    """Examples together: in one row (packing), or in rows as long as the longest."""
    lengths = [size.text + sum(tokens_per_clip(T) for T in size.frames) for size in sizes]
    return MicroBatch(
        rows=1 if packing else len(sizes),
        length=sum(lengths) if packing else max(lengths),
        frames=tuple(T for size in sizes for T in size.frames),
        labels=sum(size.labels for size in sizes),
    )
