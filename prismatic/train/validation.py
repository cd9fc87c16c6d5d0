"""The loss on held-out data, and taking the next batches so that an error of one process is known to all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from prismatic import dist
from prismatic.train import fsdp
from prismatic.train.errors import TrainingError
from prismatic.train.signals import StopSignals, exit_code
from prismatic.train.skips import SkipAccount
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.data.loader import StepLoader


def measure(
    vlm: nn.Module, loader: StepLoader, device: torch.device, signals: StopSignals, skips: SkipAccount
) -> tuple[float, int] | int:
    """(mean loss over label tokens of all processes, number of these tokens), or an exit code when a signal came.

    `vlm` is in eval mode. `skips` begins anew. Raises TrainingError when the data has nothing to learn, or when too
    many samples were skipped.
    """
    skips.resume(0, 0)
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    try:
        with torch.no_grad():
            # Epoch 0 whatever the epoch of training is: the same frames each time, so that the losses compare.
            steps = loader.iterate(0)
            for _ in range(loader.steps_per_epoch(0)):
                batches = next_batches(steps)
                for batch in batches:
                    total += vlm(batch.to(device)).loss_sum.double()
                    tokens += batch.num_label_tokens
                counts = [sum(len(b.ids) for b in batches), sum(len(b.skipped) for b in batches)]
                seen, skipped, *stops = dist.all_reduce_sum([*counts, *signals.counts()])
                skips.add(batches, int(seen), int(skipped))
                code = exit_code(stops)
                if code is not None:
                    return code
    finally:
        fsdp.reshard(vlm)
    skips.check()
    loss_sum, all_tokens = dist.all_reduce_sum([float(total), tokens])
    if not all_tokens:
        raise TrainingError("the validation data (--val_dataset) has no tokens to learn: nothing can be measured on it")
    return loss_sum / all_tokens, int(all_tokens)


def next_batches(steps: Iterator[list[Batch]]) -> list[Batch]:
    """The next step's micro-batches. An error of one process (a broken sample) is raised on all."""
    batches: list[Batch] = []
    problem = None
    try:
        batches = next(steps)
    except (ValueError, OSError) as error:
        problem = error
    dist.raise_together(problem)
    return batches
