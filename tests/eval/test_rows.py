"""Reading the rows that are answered: decoders that hang or crash take one row with them, not the evaluation."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch

from prismatic.conf.data import DatasetConfig
from prismatic.data.watch import ReadingWatch
from prismatic.eval.in_training import TrainingQuestions
from prismatic.eval.rows import Question, read_batches
from prismatic.types import Medium, Record, Skip, Turn
from tests.eval.shapes import StandIn


def _records(names: list[str]) -> list[Record]:
    return [
        Record(
            id=name,
            media=(Medium("video", (f"{name}.mp4",)),),
            turns=(Turn("human", f"What? {'z' * number}"), Turn("gpt", name)),
            source=f"rows.json, row {number + 1}",
        )
        for number, name in enumerate(names)
    ]


def _read(medium: Medium, rng: np.random.Generator) -> torch.Tensor:
    if medium.paths[0].startswith("hangs"):
        time.sleep(60)
    if medium.paths[0].startswith("crashes"):
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)


def test_decoders_that_hang_or_crash_cost_their_rows_alone() -> None:
    records, watch = _records(["a", "hangs", "b", "crashes", "c"]), ReadingWatch(1.0)
    for _ in range(2):  # what was found out is not found out again
        began = time.monotonic()
        batches = read_batches(records, _read, batch_size=2, seed=0, num_workers=2, watch=watch)
        rows = {row.index: row for batch in batches for row in batch}
    assert time.monotonic() - began < 10
    assert [type(rows[i]) for i in range(5)] == [Question, Skip, Question, Skip, Question]
    assert rows[1].reason == "reading it took more than --dataset.decode_timeout 1 s"
    assert rows[3].reason == "its process was ended by SIGKILL in each of 2 attempts to read it"
    assert rows[3].source == "rows.json, row 4"


class _Reader:
    read = staticmethod(_read)


class _Echo(StandIn):
    """Answers with the end of the prompt, which the reference is compared with."""

    def generate_batch(self, clips: list[Any], prompts: list[str], **options: Any) -> list[str]:
        return [str(prompt.count("z")) for prompt in prompts]


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_answers_while_training_survive_them_too_and_keep_their_places(on_error: str) -> None:
    model, data = _Echo(1), DatasetConfig(num_workers=2, decode_timeout=1.0, on_error=on_error)
    records = _records(["a", "b", "hangs", "c"])
    told = {}
    for rank in (0, 1):  # each a process of its own in a run
        questions = TrainingQuestions(data, records, _Reader(), task="open", examples=4, options={}, seed=0)
        if on_error == "raise" and rank == 0:
            with pytest.raises(ValueError, match="row 3: reading it took more than"):
                questions.answer(model, rank, 2)
        else:
            told |= {row["index"]: (row["id"], row["prediction"]) for row in questions.answer(model, rank, 2)}
    assert told == ({0: ("a", "0")} if on_error == "skip" else {}) | {1: ("b", "1"), 3: ("c", "3")}


def test_without_reading_processes_everything_is_read_here() -> None:
    batches = read_batches(_records(["a", "b"]), _read, batch_size=1, seed=0, num_workers=0, watch=ReadingWatch(1.0))
    assert [len(batch) for batch in batches] == [1, 1]
