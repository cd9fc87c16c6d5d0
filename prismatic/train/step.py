"""One optimizer step over the micro-batches of this process: count, accumulate, look at the numbers, clip, update.

Owns what happens to numbers that are not finite. Position, logging and saving are the trainer's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prismatic import dist
from prismatic.conf.models import StageConfig
from prismatic.dist import World
from prismatic.train import fsdp
from prismatic.train.signals import StopSignals, exit_code
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM


@dataclass(frozen=True)
class StepCounts:
    """What a step is about to work on, summed over all processes. exit_code: a signal asks to stop before it."""

    label_tokens: int
    examples: int
    skipped: int
    exit_code: int | None


@dataclass(frozen=True)
class Gradients:
    """What the backward passes of a step left. losses: of this process's micro-batches, sums over their tokens.

    loss: mean over the label tokens of all processes. norm: fp32 scalar tensor, over all processes. tokens, frames:
    sums over all processes. exit_code: a signal asks to stop after the step.
    """

    losses: list[float]
    loss: float
    norm: torch.Tensor
    tokens: int
    frames: int
    exit_code: int | None

    @property
    def finite(self) -> bool:
        """Whether loss and gradients can be stepped with; the same on every process."""
        return math.isfinite(self.loss) and math.isfinite(float(self.norm))


class Stepper:
    """Steps a sharded model. Every process calls every method alike."""

    def __init__(
        self,
        vlm: PrismaticVLM,
        optimizer: torch.optim.Optimizer,
        stage: StageConfig,
        world: World,
        signals: StopSignals,
    ) -> None:
        self.vlm, self.optimizer, self.stage, self.world, self.signals = vlm, optimizer, stage, world, signals

    def count(self, batches: list[Batch]) -> StepCounts:
        """Count before computing: the loss is divided by the label tokens of the whole step, over all processes."""
        counts = [sum(b.num_label_tokens for b in batches), sum(len(b.ids) for b in batches)]
        counts += [sum(len(b.skipped) for b in batches), *self.signals.counts()]
        label_tokens, seen, skipped, *stops = dist.all_reduce_sum(counts)
        return StepCounts(int(label_tokens), int(seen), int(skipped), exit_code(stops))

    def backward(self, batches: list[Batch], label_tokens: int) -> Gradients:
        """Gradients of the mean loss over `label_tokens`, accumulated in the parameters."""
        losses = self._accumulate(batches, label_tokens)
        norm = self._norm()
        numbers = [sum(losses), sum(b.useful for b in batches), sum(sum(b.frames_per_medium) for b in batches)]
        loss_sum, tokens, frames, *stops = dist.all_reduce_sum([*numbers, *self.signals.counts()])
        return Gradients(losses, loss_sum / label_tokens, norm, int(tokens), int(frames), exit_code(stops))

    def update(self, gradients: Gradients) -> None:
        """Clip to the stage's norm, step the optimizer, clear the gradients."""
        torch.nn.utils.clip_grads_with_norm_(self._trained(), self.stage.max_grad_norm, gradients.norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _accumulate(self, batches: list[Batch], label_tokens: int) -> list[float]:
        # FSDP takes the mean of gradients over processes; the factor world_size makes a sum of it again.
        scale = self.world.world_size / label_tokens
        losses = []
        for number, batch in enumerate(batches, start=1):
            fsdp.set_gradient_sync(self.vlm, self.stage.train_strategy, number == len(batches))
            loss_sum = self.vlm(batch.to(self.world.device)).loss_sum
            (loss_sum * scale).backward()
            losses.append(loss_sum.detach())
        return torch.stack(losses).double().tolist()

    def _norm(self) -> torch.Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None])
        return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
