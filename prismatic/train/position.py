"""Where a run stands between two steps: all that it needs to go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prismatic.train.errors import TrainingError


@dataclass
class Position:
    """Where a run stands. step: optimizer steps done; epoch: epochs done; step_in_epoch: steps done of the next one.

    complete: all steps are done, and what belongs to the end of the last epoch too.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    complete: bool = False

    def go_on(self, total_steps: int, source: Path) -> None:
        """Stand in another run, of `total_steps` steps, where `source` stood in its own.

        Raises TrainingError when there is no step left to do.
        """
        if self.step >= total_steps:
            raise TrainingError(
                f"--resume: {source} is of step {self.step}, and this run has {total_steps}: there is nothing to go on "
                "with. Raise --model.finetune_epochs or --model.finetune_max_steps (--model.align_...), or start anew "
                "from its weights with --model.init_from_model"
            )
        self.complete = False
