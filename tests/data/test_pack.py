"""Padded and packed batches hold the same examples; a packed one wastes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prismatic.data.pack import collate
from prismatic.types import IGNORE_INDEX, Batch, Example, Skip

PAD = 99


def _example(name: int, length: int, frames_per_medium: tuple[int, ...] = ()) -> Example:
    """Ids are name * 100 + position, so that every place of a batch tells where it came from."""
    ids = torch.arange(length) + name * 100
    frames = torch.full((sum(frames_per_medium), 3, 2, 2), name, dtype=torch.uint8)
    return Example(str(name), ids, ids.clone(), frames, frames_per_medium)


RAGGED = [_example(1, 5, (1,)), _example(2, 12, (4,)), _example(3, 3), _example(4, 7, (16, 1)), _example(5, 9, (4,))]


def _spans(batch: Batch) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """Example -> its ids, labels and positions, found by the ids."""
    found: dict[str, tuple[list[int], list[int], list[int]]] = {}
    for row in range(batch.input_ids.shape[0]):
        for token, label, position in zip(
            *(t[row].tolist() for t in (batch.input_ids, batch.labels, batch.position_ids)), strict=True
        ):
            if token != PAD:
                for part, value in zip(
                    found.setdefault(str(token // 100), ([], [], [])), (token, label, position), strict=True
                ):
                    part.append(value)
    return found


@pytest.mark.parametrize("packing", [False, True])
def test_every_example_is_whole_with_its_own_positions(packing: bool) -> None:
    batch = collate(RAGGED, pad_token_id=PAD, packing=packing)
    spans = _spans(batch)
    for example in RAGGED:
        ids, labels, positions = spans[example.id]
        assert ids == example.input_ids.tolist() and positions == list(range(len(example)))
        assert labels == [IGNORE_INDEX, *example.labels.tolist()[1:]]
    assert batch.useful == 36 and sorted(batch.ids) == list("12345")
    assert (batch.labels[batch.input_ids == PAD] == IGNORE_INDEX).all()
    assert batch.num_label_tokens == sum(len(example) - 1 for example in RAGGED)


@pytest.mark.parametrize(("packing", "filled"), [(False, 12 / 24), (True, 12 / 14)])
def test_a_filler_is_no_example_and_fills_nothing(packing: bool, filled: float) -> None:
    filler = Example("", torch.zeros(2, dtype=torch.int64), torch.full((2,), IGNORE_INDEX), torch.empty(0, 3, 2, 2), ())
    batch = collate([RAGGED[1], filler], pad_token_id=PAD, packing=packing)
    assert len(batch.ids) == 1 and batch.useful / batch.positions == filled


@pytest.mark.parametrize("packing", [False, True])
def test_frames_stand_in_the_order_of_the_rows(packing: bool) -> None:
    batch = collate(RAGGED, pad_token_id=PAD, packing=packing)
    by_id = {example.id: example for example in RAGGED}
    names = [token // 100 for row in batch.input_ids.tolist() for token in row if token != PAD]
    order = list(dict.fromkeys(names))
    assert [str(name) for name in order] == list(batch.ids)
    assert batch.frames_per_medium == tuple(c for name in batch.ids for c in by_id[name].frames_per_medium)
    assert batch.frames[:, 0, 0, 0].tolist() == [
        int(n) for n in batch.ids for _ in range(sum(by_id[n].frames_per_medium))
    ]


def test_padded_is_one_a_row_and_packed_is_one_row() -> None:
    padded = collate(RAGGED, pad_token_id=PAD, packing=False)
    packed = collate(RAGGED, pad_token_id=PAD, packing=True)
    assert padded.input_ids.shape == (5, 12) and not padded.packed and padded.ids == tuple("12345")
    assert packed.input_ids.shape == (1, 36) and packed.packed and packed.ids == tuple("12345")
    assert (packed.input_ids != PAD).all() and (padded.positions, padded.useful) == (60, 36)
    assert packed.positions == packed.useful == 36


def test_one_example_alone_is_not_packed() -> None:
    batch = collate([_example(1, 6)], pad_token_id=PAD, packing=True)
    assert not batch.packed and batch.input_ids.shape == (1, 6)


def test_padding_goes_on_with_the_positions() -> None:
    batch = collate([_example(1, 4), _example(2, 6)], pad_token_id=PAD, packing=False)
    assert batch.position_ids[0].tolist() == list(range(6)) and batch.input_ids[0, 4:].tolist() == [PAD, PAD]


def test_text_only_batch_has_no_frames_and_skips_are_gathered() -> None:
    skip = Skip("x", "rows.json, row 3", "no such file", 0, 2)
    example = _example(3, 3)
    example.skipped = (skip,)
    batch = collate([example, _example(4, 2)], pad_token_id=PAD, packing=True)
    assert batch.frames.shape == (0, 3, 2, 2) and batch.frames_per_medium == () and batch.skipped == (skip,)


def test_no_examples() -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate([], pad_token_id=PAD, packing=True)


@pytest.mark.parametrize("packing", [False, True])
def test_fillers_count_nowhere(packing: bool) -> None:
    filler = replace(_example(6, 2), id="", labels=torch.full((2,), IGNORE_INDEX))
    batch = collate([RAGGED[0], filler, RAGGED[2]], pad_token_id=PAD, packing=packing)
    assert batch.ids == ("1", "3") and batch.useful == 8 and batch.num_label_tokens == 6
    assert batch.positions == (10 if packing else 15)
