"""Batches through memory that is used again: what comes out is what went in, for as long as anyone looks at it."""

from __future__ import annotations

import gc
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prismatic.data import parcels
from prismatic.data.dataset import Position
from prismatic.data.loader import StepLoader
from prismatic.data.pack import collate
from prismatic.data.parcels import Parcel, SharedPlaces, Ticket
from prismatic.types import Batch, CachedFeatures, Example

FRAMES = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)


@pytest.fixture
def places() -> SharedPlaces:
    made = SharedPlaces.made(2, 2)
    assert made is not None
    return made


@pytest.mark.parametrize(
    "tensor",
    [
        FRAMES,
        FRAMES.contiguous(memory_format=torch.channels_last),
        FRAMES[:, :, ::2].transpose(1, 3),
        torch.randn(3, 5, 7).to(torch.bfloat16),
        torch.randn(3, 5, 7).to(torch.float16)[1:],
        torch.randn(1),
    ],
)
def test_what_goes_in_comes_out(places: SharedPlaces, tensor: torch.Tensor) -> None:
    ticket = places.put(1, tensor)
    assert isinstance(ticket, Ticket)
    found = places.take(pickle.loads(pickle.dumps(ticket)))
    assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    assert found.untyped_storage().nbytes() == tensor.nbytes
    for order in (torch.contiguous_format, torch.channels_last):
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=order):
            assert found.is_contiguous(memory_format=order)


def test_a_place_is_free_when_the_last_view_has_gone(places: SharedPlaces) -> None:
    first = places.put(0, FRAMES)
    assert isinstance(first, Ticket)
    view = places.take(first)[1:].permute(0, 2, 3, 1).split(1)[0][0, 0]
    gc.collect()
    second = places.put(0, FRAMES + 1)
    assert isinstance(second, Ticket) and second.place != first.place
    assert places.put(0, FRAMES) is FRAMES  # no place is left
    assert isinstance(places.put(1, FRAMES), Ticket)  # but of another process
    assert torch.equal(view, FRAMES[1].permute(1, 2, 0)[0]) and places.taken() == 3
    del view
    gc.collect()
    again = places.put(0, FRAMES + 2)
    assert isinstance(again, Ticket) and again.place == first.place
    assert torch.equal(places.take(second), FRAMES + 1)


def test_a_fork_frees_nothing(places: SharedPlaces) -> None:
    held = [places.take(places.put(0, FRAMES))]
    child = os.fork()
    if not child:
        held.clear()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and places.taken() == 1
    held.clear()
    assert places.taken() == 0


def test_what_does_not_fit_goes_the_usual_way(places: SharedPlaces, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.put(0, FRAMES[:0]).shape == (0, 3, 4, 5)
    monkeypatch.setattr(parcels, "PLACE_BYTES", FRAMES.nbytes - 1)
    assert places.put(0, FRAMES) is FRAMES and places.taken() == 0
    assert SharedPlaces.made(0, 4) is None


def test_no_room_for_addresses_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PLACE_BYTES", 1 << 56)
    assert SharedPlaces.made(2, 2) is None


@pytest.mark.parametrize("cached", [False, True])
def test_a_parcel_is_its_batch(places: SharedPlaces, cached: bool) -> None:
    ids = torch.arange(6)
    example = Example("a", ids, ids, FRAMES, (2,))
    if cached:
        example = replace(example, cache=CachedFeatures(torch.randn(3, 4, 5).to(torch.bfloat16), (None, "key"), 1))
    batch = collate([example], pad_token_id=0, packing=True)
    found = pickle.loads(pickle.dumps(Parcel.of(batch, places, 0)))
    assert isinstance(found, Batch) and places.taken() == 1 + cached
    for name in ("input_ids", "labels", "position_ids", "frames"):
        assert torch.equal(getattr(found, name), getattr(batch, name))
    assert (found.ids, found.frames_per_medium, found.lengths) == (batch.ids, batch.frames_per_medium, batch.lengths)
    if cached:
        assert found.cache is not None and batch.cache is not None and found.cache.features is not None
        assert torch.equal(found.cache.features, example.cache.features) and found.cache.keys == (None, "key")  # type: ignore[union-attr,arg-type]


class Pictures:
    """Example i has i % 3 + 1 frames, all of level i."""

    def __getitem__(self, position: Position) -> Example:
        ids, level = torch.arange(4), position.index
        return Example(f"{level}", ids, ids, torch.full((level % 3 + 1, 3, 8, 8), level, dtype=torch.uint8), ())

    def lengths(self, rows: NDArray[np.int64], epoch: int = 0) -> NDArray[np.int64]:
        return np.full(len(rows), 4)


def test_batches_that_are_kept_stay_what_they_were() -> None:
    def loader(num_workers: int) -> StepLoader:
        return StepLoader(
            *(Pictures(), lambda examples: collate(examples, pad_token_id=0, packing=True), lambda epoch: 96, 4, 2),
            num_workers=num_workers,
        )

    def batches(of: StepLoader, epoch: int) -> list[Batch]:
        return [batch for step in of.iterate(epoch) for batch in step]

    alone, two = loader(0), loader(2)
    kept = batches(two, 0)  # 48: far more than there are places
    assert two._places is not None and two._places.taken() > 8
    more = batches(two, 1)
    for found, epoch in ((kept, 0), (more, 1)):
        for one, other in zip(found, batches(alone, epoch), strict=True):
            assert one.ids == other.ids and torch.equal(one.frames, other.frames)
    del kept, more, found, one, other
    gc.collect()
    assert two._places.taken() == 0
    for step in two.iterate(2):
        del step
    assert two._places.taken() == 0
    two.close()
