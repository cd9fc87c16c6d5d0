"""Batches on their way to the device arrive whole and in order, and a run knows what it waits for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from prismatic.train.limits import WaitAccount
from prismatic.train.transfer import on_device
from prismatic.types import Batch


def _batch(number: int, size: int = 4) -> Batch:
    ids = torch.full((1, size), number)
    frames = torch.full((1, 3, 2, 2), number, dtype=torch.uint8)
    return Batch(ids, ids.clone(), ids.clone(), frames, (1,), packed=False, ids=(str(number),))


def test_every_batch_in_order_and_none_asked_for_early() -> None:
    asked = []

    def batches() -> Iterator[Batch]:
        for number in range(4):
            asked.append(number)
            yield _batch(number)

    moved = on_device(batches(), torch.device("cpu"))
    assert next(moved).ids == ("0",) and asked == [0]
    assert [(b.ids, int(b.input_ids[0, 0])) for b in moved] == [(("1",), 1), (("2",), 2), (("3",), 3)]
    assert list(on_device([], torch.device("cpu"))) == []


@pytest.mark.gpu
def test_copies_ahead_are_complete_when_they_are_used() -> None:
    device = torch.device("cuda")
    batches = [_batch(number, 1 << 22).pin_memory() for number in range(6)]
    for number, batch in enumerate(on_device(batches, device)):
        busy = torch.randn(2048, 2048, device=device)
        for _ in range(20):
            busy = busy @ busy / 2048
        assert batch.input_ids.device.type == "cuda" and batch.ids == (str(number),)
        assert bool((batch.input_ids == number).all()) and bool((batch.frames == number).all())


def test_who_is_the_limit() -> None:
    account = WaitAccount()
    assert account.share == 0.0 and "computing is the limit" in account.verdict(2, 8)
    for _ in range(100):
        account.add(1.0, 0.01)
    assert account.verdict(2, 8).endswith("keeps up: 1.0% of a step is waited for it, computing is the limit")
    for _ in range(300):
        account.add(1.0, 0.5)
    assert account.share == pytest.approx(0.49, abs=0.01) and account.steps == 400
    assert account.verdict(2, 8).endswith(
        "49% of a step is waited for it (the first one of each epoch left out), with 2 reading processes: "
        "raise --dataset.num_workers"
    )
    assert "with 1 reading process:" in account.verdict(1, 8) and "with no reading processes:" in account.verdict(0, 8)
    assert "webvid.py extract" in account.verdict(2, 2) and "--dataset.feature_cache" in account.verdict(2, 2)
