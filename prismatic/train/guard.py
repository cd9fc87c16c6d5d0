"""Steps that must not be taken: a loss or gradient that is no number, a huge gradient, or nothing to learn.

`--on_nan stop` ends the run; `skip` leaves the step out. A step that is left out changes no weight, no buffer and no
optimizer state, but counts as a step: the order of the data and the learning rate are functions of the step, so the run
goes on with the next batch at the rate that this batch would have been followed by.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prismatic import dist
from prismatic.train import narration
from prismatic.train.errors import TrainingError
from prismatic.train.jsonl import RowFile
from prismatic.train.step import Gradients, StepCounts
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.train.trainer import Trainer

log = logging.getLogger(__name__)

LISTED_IDS = 64


class StepGuard:
    """Decides about steps, on all processes alike, and keeps the account of those left out.

    max_in_a_row: so many left out in a row end the run, whatever the policy. max_gradient: norms above it count as not
    finite; None for no such limit.
    """

    def __init__(
        self, run_dir: Path, policy: Literal["stop", "skip"], max_in_a_row: int, max_gradient: float | None
    ) -> None:
        self.policy, self._max_in_a_row, self._max_gradient = policy, max_in_a_row, max_gradient
        self.left_out = 0
        self.in_a_row = 0
        self._file = RowFile(run_dir / "skipped-steps.jsonl")

    @property
    def skips(self) -> bool:
        """Whether the run may go on after such a step."""
        return self.policy == "skip"

    def resume(self, step: int, left_out: int, in_a_row: int) -> None:
        """Go on after `step` with these counts; rows of later steps, which come anew, are cut from the file."""
        self.left_out, self.in_a_row = left_out, in_a_row
        if dist.rank_zero():
            self._file.keep(lambda _number, row: row["step"] <= step)

    def attempt(self, trainer: Trainer, batches: list[Batch], counts: StepCounts) -> Gradients | None:
        """The gradients of the next step, or None when it is left out. Raises TrainingError by policy."""
        step, stepper = trainer.at.step + 1, trainer.stepper
        if not counts.label_tokens:
            text = narration.nothing_to_learn(trainer, batches)
            if not self.skips:
                raise TrainingError(text)
            self.leave_out(
                step, text.partition(": ")[2], concerned(batches, [0.0] * len(batches)), "Look at these rows"
            )
            stepper.leave_out([])
            return None
        kept = stepper.buffers() if self.skips else []
        gradients = stepper.backward(batches, counts.label_tokens)
        problem = self.problem(gradients)
        if problem is None:
            self.in_a_row = 0
            return gradients
        self.leave_out(step, problem, concerned(batches, gradients.losses), narration.advice(trainer))
        stepper.leave_out(kept)
        return None

    def problem(self, gradients: Gradients) -> str | None:
        """What is wrong with a step, as a clause; None when it can be taken. The same on every process."""
        norm = float(gradients.norm)
        if not gradients.finite:
            return f"loss {gradients.loss:g} with gradient norm {norm:g} is not finite"
        if self._max_gradient is not None and norm > self._max_gradient:
            return f"gradient norm {norm:g} is above --max_gradient {self._max_gradient:g}"
        return None

    def leave_out(self, step: int, problem: str, ids: Sequence[str], advice: str) -> None:
        """Account for step number `step`, which is not taken. Every process calls it.

        ids: of the samples concerned, of all processes. advice: for the text of the error. Raises TrainingError by
        policy, or when too many were left out in a row.
        """
        named = narration.some(ids)
        if not self.skips:
            raise TrainingError(
                f"step {step}: {problem}; the weights were not changed by it. Samples concerned: {named}. {advice}, or "
                "pass --on_nan skip to leave such steps out"
            )
        self.left_out += 1
        self.in_a_row += 1
        if dist.rank_zero():
            self._file.append({"step": step, "reason": problem, "ids": list(ids[:LISTED_IDS])})
            log.warning(f"step {step} is left out: {problem}. Samples concerned: {named}. No weight was changed")
        if self.in_a_row >= self._max_in_a_row:
            raise TrainingError(
                f"step {step}: {problem}; {self.in_a_row} steps in a row are left out now (--max_nan_steps "
                f"{self._max_in_a_row}). Samples concerned: {named}. {advice}"
            )


def concerned(batches: Sequence[Batch], losses: Sequence[float]) -> list[str]:
    """Ids of the samples that a bad step is due to, over all processes, which all call this.

    Those of the micro-batches whose loss is not finite; where all are finite, every sample of the step.
    """
    own = [i for batch, value in zip(batches, losses, strict=True) if not math.isfinite(value) for i in batch.ids if i]
    everything = [i for batch in batches for i in batch.ids if i]
    gathered = dist.gather_objects((own, everything))
    bad = [i for ids, _ in gathered for i in ids]
    return bad or [i for _, ids in gathered for i in ids]
