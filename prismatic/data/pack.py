"""Examples into one Batch: one a row (padded), or all in one row (packed)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prismatic.types import IGNORE_INDEX, Batch, CachedFeatures, Example


def collate(examples: Sequence[Example], *, pad_token_id: int, packing: bool) -> Batch:
    """A Batch of all `examples`, in their order.

    packing: the examples follow each other in a single row, with positions that restart at 0 for each, and there is no
    padding; otherwise row i is example i, as long as the longest. Frames stand in the order of the slots. Padding holds
    pad_token_id, is not learned, and continues the positions of the example before it.

    Raises ValueError without examples.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    lengths = [len(example) for example in examples]
    capacity = sum(lengths) if packing else max(lengths)
    shape = (1 if packing else len(examples), capacity)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    start = 0
    for number, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        row, end = (0 if packing else number), start + length
        input_ids[row, start:end] = example.input_ids
        labels[row, start + 1 : end] = example.labels[1:]  # the first token has nothing in front to predict it
        position_ids[row, start:end] = torch.arange(length)
        if not packing:
            position_ids[row, end:] = torch.arange(length, capacity)
        start = end if packing else 0
    cached = [example.cache for example in examples if example.cache is not None]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        frames=torch.cat([example.frames for example in examples]),
        frames_per_medium=tuple(count for example in examples for count in example.frames_per_medium),
        packed=packing and len(examples) > 1,
        ids=tuple(example.id for example in examples if example.id),
        useful=sum(len(example) for example in examples if example.id),
        lengths=tuple(lengths),
        skipped=tuple(skip for example in examples for skip in example.skipped),
        cache=CachedFeatures.join(cached) if cached else None,
    )
