"""Which weights of a run are the best: those with the least of one number, chosen by --best_metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prismatic.train.answers import mean_score

LOSS = "validation_loss"


class Best:
    """Keeps the number that decides: the validation loss, or the mean of a score over the datasets with a minus.

    least: the lowest so far. at: the step of the last measurement.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.least = math.inf
        self.at: int | None = None
        self._value = math.inf

    def note_loss(self, step: int, loss: float) -> None:
        """Take note of a validation."""
        if self.metric == LOSS:
            self.at, self._value = step, loss

    def note_scores(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Take note of scored answers. Raises ValueError when the metric is none of the scores."""
        if self.metric != LOSS:
            self.at, self._value = step, -mean_score(scores, self.metric)

    def at_step(self, step: int) -> float | None:
        """What was measured of the weights of this very step, None when nothing was."""
        return self._value if self.at == step else None

    def improved(self, step: int) -> bool:
        """Whether the weights of this step are the best so far and no checkpoint has them yet."""
        return self.at == step and self._value < self.least

    def state(self, step: int) -> dict[str, Any]:
        """For the checkpoint of a step; from now on its number is the one to beat, if it is lower."""
        if self.improved(step):
            self.least = self._value
        least = self.least if math.isfinite(self.least) else None  # JSON knows no infinity
        return {"name": self.metric, "value": self.at_step(step), "least": least}

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` gave; one number does not compare with another. None: of an older version."""
        if state is not None and state["name"] == self.metric and state["least"] is not None:
            self.least = state["least"]
