"""Learning-rate schedules: pure functions of the step, as a factor of each group's peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from prismatic.registry import Registry


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of a run: all of them, those that warm up at its begin, those that decay at its end."""

    total: int
    warmup: int
    decay: int


Schedule = Callable[[int, Steps], float]
"""The factor, 0 to 1, of step number `step` (from 0) after the warm-up."""

SCHEDULES: Registry[Schedule] = Registry("learning-rate schedule", flag="--model.finetune_lr_scheduler_type")


@SCHEDULES.register("linear-warmup+cosine-decay")
def cosine(step: int, steps: Steps) -> float:
    """Half a cosine wave from 1 to 0."""
    share = (step - steps.warmup) / max(1, steps.total - steps.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


@SCHEDULES.register("constant")
def constant(step: int, steps: Steps) -> float:
    """1 throughout."""
    return 1.0


@SCHEDULES.register("wsd")
def warmup_stable_decay(step: int, steps: Steps) -> float:
    """1, then a straight line to 0 over the last `steps.decay` steps (WSD, arXiv:2404.06395, section 4)."""
    return min(1.0, max(0, steps.total - step) / max(1, steps.decay))


def build_schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    total_steps: int,
    warmup_ratio: float,
    done: int = 0,
    *,
    decay_ratio: float = 0.2,
) -> LambdaLR:
    """Linear warm-up from 0 over int(total_steps * warmup_ratio) steps, then the schedule of that name.

    done: steps that were taken before; the rate is a function of the step, so there is no state to restore.
    decay_ratio: share of the steps that decay, of schedules with a plateau. Raises UnknownIdError (a ValueError).
    """
    schedule = SCHEDULES.get(name)
    steps = Steps(total_steps, int(total_steps * warmup_ratio), int(total_steps * decay_ratio))

    def factor(step: int) -> float:
        return step / steps.warmup if step < steps.warmup else schedule(step, steps)

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    if hasattr(optimizer, "replay"):  # An optimizer whose averages depend on all rates so far
        optimizer.replay(factor, done)
    return LambdaLR(optimizer, factor, last_epoch=done - 1)
