"""Order, steps, ranks, resuming, and what happens when reading goes wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prismatic.data.dataset import FILLER_LENGTH, Position, SampleError
from prismatic.data.loader import StepLoader, WorkerError
from prismatic.data.pack import collate
from prismatic.types import IGNORE_INDEX, Batch, Example


class Numbers:
    """Example i has id "i" and i % 7 + 2 tokens; it notes what is read in this process."""

    def __init__(self, act: Callable[[Position], None] = lambda position: None) -> None:
        self.act = act
        self.read: list[Position] = []

    def __getitem__(self, position: Position) -> Example:
        self.read.append(position)
        self.act(position)
        ids = torch.full((position.index % 7 + 2 if position.counted else FILLER_LENGTH,), position.index)
        labels = ids.clone() if position.counted else torch.full_like(ids, IGNORE_INDEX)
        name = f"{position.index}" if position.counted else ""
        return Example(name, ids, labels, torch.empty((0, 3, 2, 2), dtype=torch.uint8), ())

    def lengths(self, rows: NDArray[np.int64], epoch: int = 0) -> NDArray[np.int64]:
        return rows % 7 + 2


def _collate(examples: list[Example]) -> Batch:
    return collate(examples, pad_token_id=0, packing=False)


def _loader(dataset: Numbers | None = None, rows: int = 37, **options: Any) -> StepLoader:
    options = {"global_batch_size": 8, "per_device_batch_size": 2, "seed": 3, **options}
    return StepLoader(dataset or Numbers(), _collate, num_examples=lambda epoch: rows, **options)


def _ids(steps: list[list[Batch]]) -> list[list[tuple[str, ...]]]:
    return [[batch.ids for batch in step] for step in steps]


def test_each_row_is_given_once_an_epoch() -> None:
    loader = _loader()
    steps = list(loader.iterate(0))
    assert len(steps) == loader.steps_per_epoch(0) == 5 and all(
        len(step) == loader.micro_batches == 4 for step in steps
    )
    names = [name for step in steps for batch in step for name in batch.ids]
    assert sorted(names, key=int) == [str(i) for i in range(37)]
    assert sum(len(batch.lengths) for step in steps for batch in step) == 40  # three fillers
    assert sum(b.num_label_tokens for step in steps for b in step) == sum(i % 7 + 1 for i in range(37))


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_gives_the_same_global_batches(world_size: int) -> None:
    alone = _ids(list(_loader().iterate(1)))
    ranks = [_ids(list(_loader(rank=r, world_size=world_size).iterate(1))) for r in range(world_size)]
    for number, step in enumerate(alone):
        together = [batch for rank in ranks for batch in rank[number]]
        assert sorted(together) == sorted(step)
        assert [len(rank[number]) for rank in ranks] == [4 // world_size] * world_size


def test_like_lengths_meet() -> None:
    step = next(_loader(global_batch_size=16, rows=64).iterate(0))
    longest = [batch.input_ids.shape[1] for batch in step]
    assert longest == sorted(longest, reverse=True)
    waste = sum(batch.input_ids.numel() - batch.useful for batch in step)
    assert waste <= 7


def test_resuming_reads_nothing_again() -> None:
    whole = _ids(list(_loader().iterate(2)))
    dataset = Numbers()
    assert _ids(list(_loader(dataset).iterate(2, start_step=3))) == whole[3:]
    assert len(dataset.read) == 2 * 8
    assert list(_loader().iterate(2, start_step=5)) == []


def test_workers_give_the_same_batches_and_stay_for_the_next_epoch() -> None:
    loader = _loader(num_workers=2)
    state = torch.get_rng_state()
    assert _ids(list(loader.iterate(0))) == _ids(list(_loader().iterate(0)))
    workers = {process.pid for process in loader._loader._iterator._workers}
    first = next(iter(loader.iterate(1)))  # left in the middle
    assert _ids([first]) == _ids([next(_loader().iterate(1))])
    assert _ids(list(loader.iterate(1, start_step=1))) == _ids(list(_loader().iterate(1)))[1:]
    assert {process.pid for process in loader._loader._iterator._workers} == workers
    assert torch.equal(state, torch.get_rng_state())  # the global generator is not touched
    loader.close()
    assert all(not _alive(pid) for pid in workers)


def test_sizes_that_do_not_divide_name_the_flags() -> None:
    with pytest.raises(
        ValueError, match=r"8 must be a multiple of .* 3 x 1 processes; change --model\.finetune_global"
    ):
        _loader(per_device_batch_size=3)
    with pytest.raises(ValueError, match="2 x 3 processes"):
        _loader(world_size=3)


def _break(position: Position) -> None:
    if position.index == 5:
        raise SampleError("rows.json, row 6: a.mp4: no such file")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_sample_arrives_as_one_line(num_workers: int) -> None:
    loader = _loader(Numbers(_break), num_workers=num_workers)
    with pytest.raises(SampleError) as caught:
        list(loader.iterate(0))
    assert str(caught.value) == "rows.json, row 6: a.mp4: no such file"
    loader.close()


def _bug(position: Position) -> None:
    raise KeyError("ours")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        next(_loader(Numbers(_bug)).iterate(0))


def _die(position: Position) -> None:
    if position.index == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_dead_worker_is_a_clear_error() -> None:
    loader = _loader(Numbers(_die), num_workers=1)
    with pytest.raises(WorkerError, match=r"has died .*--dataset\.num_workers"):
        list(loader.iterate(0))


def test_worker_outlives_signals_that_are_not_from_its_parent() -> None:
    loader = _loader(num_workers=1, rows=64)
    steps = loader.iterate(0)
    next(steps)
    (worker,) = loader._loader._iterator._workers
    os.kill(worker.pid, signal.SIGINT)
    # Sent by another process, as a launcher does to the whole group.
    os.system(f"kill -TERM {worker.pid}")
    time.sleep(0.2)
    assert _alive(worker.pid) and len(list(steps)) == 7
    deadline = time.monotonic() + 20
    while worker.is_alive() and time.monotonic() < deadline:
        # From the parent: as DataLoader ends a worker that does not listen. One that comes while the other process's
        # still waits to be looked at is the same signal.
        worker.terminate()
        worker.join(timeout=0.5)
    assert not worker.is_alive()


def _alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _pack(examples: list[Example]) -> Batch:
    return collate(examples, pad_token_id=0, packing=True)


def _packed(**options: Any) -> StepLoader:
    return StepLoader(
        options.pop("dataset", Numbers()),
        _pack,
        **{**{"num_examples": lambda epoch: 101, "global_batch_size": 32, "per_device_batch_size": 4}, **options},
        packing=True,
        seed=3,
    )


def test_packed_steps_hold_the_same_examples_and_are_level() -> None:
    packed, again = list(_packed().iterate(0)), list(_packed().iterate(0))
    for step, other in zip(packed, _loader(rows=101, global_batch_size=32).iterate(0), strict=True):
        assert sorted(n for b in step for n in b.ids) == sorted(n for b in other for n in b.ids)
    assert _ids(packed) == _ids(again)
    sizes = [batch.positions for batch in packed[0]]
    assert len(sizes) == 8 and max(sizes) - min(sizes) <= 2 and all(b.input_ids.shape[0] == 1 for b in packed[0])
    assert all(b.positions == sum(b.lengths) >= b.useful and b.lengths for step in packed for b in step)


@pytest.mark.parametrize("world_size", [2, 4])
def test_packed_micro_batches_are_the_same_for_any_number_of_processes(world_size: int) -> None:
    alone = _ids(list(_packed().iterate(1)))
    ranks = [_ids(list(_packed(rank=r, world_size=world_size).iterate(1, 1))) for r in range(world_size)]
    for number, step in enumerate(alone[1:]):
        assert sorted(batch for rank in ranks for batch in rank[number]) == sorted(step)
        assert [len(rank[number]) for rank in ranks] == [8 // world_size] * world_size


def test_a_set_smaller_than_the_global_batch_leaves_no_micro_batch_empty() -> None:
    (step,) = _packed(num_examples=lambda epoch: 3).iterate(0)
    assert len(step) == 8 and all(batch.lengths for batch in step)
    assert sorted(filter(None, (n for b in step for n in b.ids))) == ["0", "1", "2"]


@pytest.mark.parametrize(("num_workers", "prefetch"), [(1, 1), (2, 8), (4, 2)])
def test_workers_and_prefetch_change_nothing(num_workers: int, prefetch: int) -> None:
    loader = _packed(num_workers=num_workers, prefetch=prefetch)
    steps, expected = list(loader.iterate(2)), list(_packed().iterate(2))
    loader.close()
    assert _ids(steps) == _ids(expected)
    for one, other in zip((b for s in steps for b in s), (b for s in expected for b in s), strict=True):
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.position_ids, other.position_ids)


def _slow(position: Position) -> None:
    time.sleep(0.002)


def _kill_a_worker_while_it_reads(seed: int) -> None:
    loader = _packed(dataset=Numbers(_slow), num_workers=2)
    steps = loader.iterate(0)
    taken = [next(steps)]
    rng = np.random.default_rng(seed)
    worker = loader._loader._iterator._workers[int(rng.integers(2))]
    time.sleep(float(rng.uniform(0, 0.1)))
    os.kill(worker.pid, signal.SIGKILL)
    began = time.monotonic()
    try:
        taken += steps
    except WorkerError as error:
        assert "has died" in str(error) and time.monotonic() - began < 10
    # Killed behind its last micro-batch or not: what did come is what should have come, in order.
    assert _ids(taken) == _ids(list(_packed().iterate(0)))[: len(taken)]
    loader.close()
    rest = loader.iterate(0, len(taken))
    assert _ids(taken) + _ids(list(rest)) == _ids(list(_packed().iterate(0)))  # no sample is lost
    loader.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_worker_is_an_error_within_seconds_and_loses_nothing(seed: int) -> None:
    _kill_a_worker_while_it_reads(seed)


def test_a_death_while_the_step_is_computed_does_not_interrupt_it() -> None:
    """DataLoader raises in whatever the main thread is at; half an optimizer step could not be taken back."""
    loader, expected = _packed(num_workers=2), _ids(list(_packed().iterate(0)))
    steps = loader.iterate(0)
    taken = [next(steps)]
    worker = loader._loader._iterator._workers[1]
    os.kill(worker.pid, signal.SIGKILL)
    computing = time.monotonic() + 0.5
    while time.monotonic() < computing:
        torch.ones(8) + 1
    assert _ids(taken + list(steps)) == expected
    loader.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_killed_worker_twenty_times(seed: int) -> None:
    _kill_a_worker_while_it_reads(seed)
