"""A task of evaluate.py on a fixed part of a validation dataset, for answers while a model is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from prismatic.conf.data import DatasetConfig
from prismatic.data.media import MediaReader
from prismatic.data.watch import ReadingWatch
from prismatic.eval.metrics import METRICS
from prismatic.eval.rows import Question, read_batches, shown_question
from prismatic.eval.tasks import TASKS, Answerer, Row
from prismatic.types import Record, Skip

log = logging.getLogger(__name__)

BATCH_ROWS = 8  # answered at a time by one process


class TrainingQuestions:
    """Rows at even distances through a dataset, answered by the processes of a run in turns and scored together.

    read: as training reads, without augmentations. options: of `generate`.
    """

    def __init__(
        self,
        data: DatasetConfig,
        records: Sequence[Record],
        read: MediaReader,
        *,
        task: str,
        examples: int,
        options: dict[str, Any],
        seed: int,
    ) -> None:
        self._task, self._read, self._options, self._seed = TASKS.get(task), read, options, seed
        self._metric = METRICS.get(data.metric) if data.metric and task != "choice" else None
        self._workers = data.num_workers
        self._told: set[str] = set()
        self._watch = ReadingWatch(data.decode_timeout)
        self._on_error = data.on_error
        places = np.unique(np.linspace(0, len(records) - 1, min(examples, len(records))).astype(int))
        self._records = [records[int(i)] for i in places]
        for record in self._records:
            self._task.check(record)

    @property
    def names(self) -> list[str]:
        """The scores that `score` gives."""
        return list(self.score([]))

    def answer(self, vlm: Answerer, rank: int, world_size: int) -> list[Row]:
        """Answers to every `world_size`-th row from `rank` on; with on_error skip without those that are broken.

        Raises ValueError naming a row that cannot be read.
        """
        mine = range(rank, len(self._records), world_size)
        batches = read_batches(
            [self._records[i] for i in mine],
            self._read.read,
            batch_size=BATCH_ROWS,
            seed=self._seed,
            num_workers=min(self._workers, 4),
            watch=self._watch,
        )
        rows: list[Row] = []
        for batch in batches:
            broken = next((row for row in batch if isinstance(row, Skip)), None)
            if broken is not None and self._on_error == "raise":
                raise ValueError(f"{broken.source}: {broken.reason} (--val_dataset.on_error skip leaves such rows out)")
            self._tell(row for row in batch if isinstance(row, Skip))
            kept = [row for row in batch if isinstance(row, Question)]
            answers = self._task.answer(vlm, kept, self._options) if kept else []
            rows += [self._row(mine[q.index], q, a) for q, a in zip(kept, answers, strict=True)]
        return rows

    def score(self, rows: list[Row]) -> dict[str, float]:
        """Scores of answered rows: of the task, and of the dataset's own metric."""
        scores: dict[str, Any] = dict(self._task.score(rows))
        if self._metric is not None:
            scores |= self._metric.score([r["prediction"] for r in rows], [r["reference"] for r in rows])
        return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}

    def _tell(self, skips: Iterable[Skip]) -> None:
        """Of each row that cannot be asked, once in a run."""
        for skip in skips:
            if skip.source not in self._told:
                self._told.add(skip.source)
                log.warning(f"A row of the evaluation while training is not asked: {skip.reason} ({skip.source})")

    def _row(self, number: int, question: Question, answer: Row) -> Row:
        return {
            "index": number,
            "id": question.record.id,
            "question": shown_question(question.text),
            "reference": question.reference,
            **answer,
        }
