"""Where a run stands between two steps: all that it needs to go on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Where a run stands. step: optimizer steps done; epoch: epochs done; step_in_epoch: steps done of the next one.

    complete: all steps are done, and what belongs to the end of the last epoch too.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    complete: bool = False
