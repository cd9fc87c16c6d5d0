"""The optimizer of a run, its learning rates and their schedule: what is stepped, how, and how fast.

groups.py says which weight gets which rate (and which are frozen by pattern), optimizers.py holds the registry of
optimizers, schedules.py that of schedules. A schedule is a pure function of the step, so a resumed run needs no state
of it.
"""

from __future__ import annotations

from prismatic.train.optim.groups import check_patterns, freeze_matching, learning_rates
from prismatic.train.optim.optimizers import OPTIMIZERS, averaged, build_optimizer, check_optimizer, state_bytes
from prismatic.train.optim.schedules import SCHEDULES, build_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "averaged",
    "build_optimizer",
    "build_schedule",
    "check_optimizer",
    "check_patterns",
    "freeze_matching",
    "learning_rates",
    "state_bytes",
]
