"""Examples into one Batch: one a row (padded), or several a row (packed)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prismatic.types import IGNORE_INDEX, Batch, CachedFeatures, Example


def collate(examples: Sequence[Example], *, pad_token_id: int, packing: bool) -> Batch:
    """A Batch of all `examples`; its rows are as long as the longest of them.

    packing: short examples share rows (first-fit, longest first), with positions that restart at 0 for each; otherwise
    row i is example i. Frames stand in the order of the slots, row by row. Padding holds pad_token_id, is not learned,
    and continues the positions of the example before it.

    Raises ValueError without examples.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    capacity = max(len(example) for example in examples)
    rows = (
        first_fit([len(example) for example in examples], capacity) if packing else [[i] for i in range(len(examples))]
    )
    shape = (len(rows), capacity)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    for row, members in enumerate(rows):
        start = 0
        for index in members:
            example = examples[index]
            end = start + len(example)
            input_ids[row, start:end] = example.input_ids
            labels[row, start + 1 : end] = example.labels[1:]  # the first token has nothing in front to predict it
            position_ids[row, start:] = torch.arange(capacity - start)
            start = end
    ordered = [examples[index] for members in rows for index in members]
    cached = [example.cache for example in ordered if example.cache is not None]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        frames=torch.cat([example.frames for example in ordered]),
        frames_per_medium=tuple(count for example in ordered for count in example.frames_per_medium),
        packed=any(len(members) > 1 for members in rows),
        ids=tuple(example.id for example in ordered),
        useful=sum(len(example) for example in ordered),
        skipped=tuple(skip for example in ordered for skip in example.skipped),
        cache=CachedFeatures.join(cached) if cached else None,
    )


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in rows of at most `capacity` each: longest first, each into the first row with room.

    Needs at most 11/9 of the fewest rows possible, plus one (Johnson 1973). Equal lengths keep their order.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows
