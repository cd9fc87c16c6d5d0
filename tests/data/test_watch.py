"""A sample that hangs or crashes its decoder costs its process, not the run: it is named, replaced, nothing is lost."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.data.annotations import load_records
from prismatic.data.dataset import ClipDataset, MediaReader, SampleError
from prismatic.data.loader import StepLoader, WorkerError
from prismatic.data.pack import collate
from prismatic.data.watch import ReadingWatch
from prismatic.prompting import TEMPLATES
from prismatic.types import Batch, ImageSpec, Medium
from tests.tokenizer_kinds import make

ROWS = 24
Evil = dict[int, Callable[[Path], None]]


def _hang(_mark: Path) -> None:
    ctypes.PyDLL(None).pause()  # in C, with the interpreter lock held: no Python code runs in this process any more


def _crash(_mark: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _killed_once(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class _Reader(MediaReader):
    """Reads as any, but for some rows, at which something happens to the process."""

    evil: Evil = {}
    mark = Path()

    def read(self, medium: Medium, rng: np.random.Generator) -> torch.Tensor:
        self.evil.get(int(Path(medium.paths[0]).stem), lambda _mark: None)(self.mark)
        return super().read(medium, rng)


@pytest.fixture
def loader(tmp_path: Path) -> Callable[..., StepLoader]:
    """loader(evil, timeout=..., on_error=..., num_workers=...) -> steps of 4 of 24 rows."""
    rows = []
    for number in range(ROWS):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"It is {number}."}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def build(evil: Evil, *, timeout: float = 0.0, on_error: str = "skip", num_workers: int = 2) -> StepLoader:
        reader = _Reader(num_frames=1, image_spec=ImageSpec(resolution=8))
        # The class is frozen for its users; a process that is forked gets these as they are.
        object.__setattr__(reader, "evil", evil)
        object.__setattr__(reader, "mark", tmp_path / "mark")
        dataset = ClipDataset(
            [load_records(tmp_path / "rows.json", tmp_path)],
            read=reader,
            template=TEMPLATES.get("pure"),
            tokenizer=make("llama2"),
            layout="after-bos",
            max_length=64,
            tokens_per_clip=lambda frames: frames,
            on_error=on_error,
            watch=ReadingWatch(timeout),
        )
        return StepLoader(
            dataset,
            partial(collate, pad_token_id=0, packing=False),
            num_examples=dataset.num_examples,
            global_batch_size=4,
            per_device_batch_size=2,
            num_workers=num_workers,
        )

    return build


def _ids(steps: list[list[Batch]]) -> list[tuple[str, ...]]:
    return [batch.ids for step in steps for batch in step]


def _skips(steps: list[list[Batch]]) -> dict[str, str]:
    return {skip.id: skip.reason for step in steps for batch in step for skip in batch.skipped}


def test_a_decoder_that_hangs_is_ended_named_and_replaced(loader: Callable[..., StepLoader]) -> None:
    began = time.monotonic()
    hung = loader({5: _hang}, timeout=1.0)
    steps = list(hung.iterate(0))
    assert time.monotonic() - began < 30
    assert _skips(steps) == {"5": "reading it took more than --dataset.decode_timeout 1 s"}
    whole = list(loader({}).iterate(0))
    assert len(steps) == len(whole)
    for ours, theirs in zip(_ids(steps), _ids(whole), strict=True):
        assert [i for i in ours if "5" not in theirs] == [i for i in theirs if "5" not in theirs]
    assert sum("5" in ids for ids in _ids(whole)) == 1 and not any("5" in ids for ids in _ids(steps))
    # Again, and from the middle: the same one is left out, the same one is in its place.
    assert _ids(list(hung.iterate(0))) == _ids(steps)
    hung.close()


def test_a_decoder_that_crashes_is_named_and_replaced(
    loader: Callable[..., StepLoader], caplog: pytest.LogCaptureFixture
) -> None:
    crashing = loader({7: _crash, 11: _crash})
    steps = list(crashing.iterate(0))
    reason = "its process was ended by SIGSEGV in each of 2 attempts to read it"
    assert _skips(steps) == {"7": reason, "11": reason}
    assert sorted({i for ids in _ids(steps) for i in ids} | {"7", "11"}, key=int) == [str(n) for n in range(ROWS)]
    assert "ended by SIGSEGV; it is read again" in caplog.text
    crashing.close()


def test_a_process_that_is_killed_from_outside_costs_no_sample(loader: Callable[..., StepLoader]) -> None:
    killed = loader({9: _killed_once})
    steps = list(killed.iterate(0))
    assert _ids(steps) == _ids(list(loader({}).iterate(0))) and not _skips(steps)
    killed.close()


def test_under_raise_the_run_stops_and_names_the_sample(loader: Callable[..., StepLoader]) -> None:
    with pytest.raises(SampleError, match=r"rows.json, row 6: reading it took more than --dataset.decode_timeout 1 s"):
        list(loader({5: _hang}, timeout=1.0, on_error="raise").iterate(0))


def test_processes_that_die_again_and_again_are_an_error(loader: Callable[..., StepLoader]) -> None:
    everywhere = loader({number: _crash for number in range(ROWS)}, num_workers=1)
    with pytest.raises(WorkerError, match=r"and so have 3 started in its place; .*--dataset\.num_workers"):
        list(everywhere.iterate(0))


def test_leaving_in_the_middle_waits_for_no_decoder(loader: Callable[..., StepLoader]) -> None:
    class Leave(BaseException):
        pass

    def leave(*_: object) -> None:
        raise Leave

    steps = loader({1: _hang, 2: _hang}, timeout=60.0)
    before = signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    began = time.monotonic()
    with pytest.raises(Leave):
        list(steps.iterate(0))
    signal.signal(signal.SIGALRM, before)
    steps.close()
    assert not multiprocessing.active_children() and time.monotonic() - began < 4


def test_what_is_unreadable_stays_so_after_a_restart() -> None:
    watch = ReadingWatch(2.0)
    watch._slots[3] = 1, 0, 17, time.monotonic() - 3
    assert watch.look_at([(3, 1)]) == ["row 18 of epoch 1: it cannot be read: " + watch.unreadable[0, 17]]
    with pytest.raises(ValueError, match="took more than"):
        watch.read(0, 17, lambda: None)
    assert watch.read(0, 18, lambda: "fine") == "fine"
    assert watch.look_at([(4, -9)]) == ["its process was ended by SIGKILL while it waited"]
