"""Answering rows of the validation data while training, on a model that is spread over processes.

What is asked and how answers are scored comes from outside (eval/in_training.py, handed over by build.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic import dist
from prismatic.dist import World
from prismatic.report.run_report import ANSWER_FILE
from prismatic.train import fsdp
from prismatic.train.jsonl import RowFile
from prismatic.train.validation import Row, ValidationSet

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)


class Answers:
    """Answers and scores the questions of each validation dataset. `answers.jsonl` keeps what was said.

    strategy: how the weights lie over the processes.
    """

    def __init__(self, run_dir: Path, sets: Mapping[str, ValidationSet], strategy: str) -> None:
        self.questions = {name: data.questions for name, data in sets.items() if data.questions is not None}
        self._strategy = strategy
        self._file = RowFile(run_dir / ANSWER_FILE)

    def resume(self, step: int) -> None:
        """Go on after `step`: answers of later steps, which come again, are cut."""
        if dist.rank_zero():
            self._file.keep(lambda _number, row: row["step"] <= step)

    def take(self, vlm: PrismaticVLM, world: World, step: int) -> dict[str, dict[str, float]]:
        """Scores by dataset, the same on every process, which all call this.

        The weights are gathered once; each process then answers its share at its own pace. The model must have run
        forward before, and be in eval mode. Raises what reading the rows raises, on all processes.
        """
        scores = {}
        with fsdp.gathered(vlm, self._strategy):
            for name, questions in self.questions.items():
                rows: list[Row] = []
                problem = None
                try:
                    rows = questions.answer(vlm, world.rank, world.world_size)
                except (ValueError, OSError) as error:
                    problem = error
                dist.raise_together(problem)
                every = sorted(
                    (row for part in dist.gather_objects(rows) for row in part), key=lambda row: row["index"]
                )
                scores[name] = dist.broadcast_object(questions.score(every) if dist.rank_zero() else None)
                self._note(step, name, every)
        return scores

    def _note(self, step: int, name: str, rows: list[Row]) -> None:
        if not dist.rank_zero():
            return
        for row in rows:
            kept = {key: row[key] for key in ("id", "question", "prediction", "reference")}
            self._file.append({"step": step, "data": name, **kept})


def mean_score(scores: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Mean of one score over the datasets. Raises ValueError naming the scores there are for another name."""
    values = [of[name] for of in scores.values() if name in of]
    if not values:
        known = sorted({key for of in scores.values() for key in of})
        raise ValueError(f"--best_metric {name} is not measured; there are {', '.join(['validation_loss', *known])}")
    return sum(values) / len(values)
