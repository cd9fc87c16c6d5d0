"""One optimizer step over the micro-batches of this process: count, accumulate, look at the numbers, clip, update.

Owns what happens to numbers that are not finite. Position, logging and saving are the trainer's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING

import torch

from prismatic import dist
from prismatic.conf.models import StageConfig
from prismatic.dist import World
from prismatic.train import fsdp
from prismatic.train.signals import StopSignals, received
from prismatic.train.transfer import on_device
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM
    from prismatic.train.flops import StepFlops


@dataclass(frozen=True)
class StepCounts:
    """What a step is about to work on, summed over all processes. stop: a signal asked for it before the step.

    data_wait: seconds that the slowest process waited for its batches. The others wait for it in the first collective.
    """

    label_tokens: int
    examples: int
    skipped: int
    stop: Signals | None
    data_wait: float = 0.0


@dataclass(frozen=True)
class Gradients:
    """What the backward passes of a step left. losses: of this process's micro-batches, sums over their tokens.

    loss: mean over the label tokens of all processes. norm: fp32 scalar tensor, over all processes. tokens, frames,
    positions (padding among them), flops (useful ones, 0 where they are not counted): sums over all processes.
    stop: a signal asked for it during the step.
    """

    losses: list[float]
    loss: float
    norm: torch.Tensor
    tokens: int
    frames: int
    stop: Signals | None
    positions: int = 0
    flops: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether loss and gradients can be stepped with; the same on every process."""
        return math.isfinite(self.loss) and math.isfinite(float(self.norm))


class Stepper:
    """Steps a sharded model. Every process calls every method alike.

    flops: counts the useful FLOPs of batches; None for a model whose FLOPs are not counted.
    """

    def __init__(
        self,
        vlm: PrismaticVLM,
        optimizer: torch.optim.Optimizer,
        stage: StageConfig,
        world: World,
        signals: StopSignals,
        flops: StepFlops | None = None,
    ) -> None:
        self.vlm, self.optimizer, self.stage, self.world, self.signals = vlm, optimizer, stage, world, signals
        self.flops = flops

    def count(self, batches: list[Batch], data_wait: float = 0.0) -> StepCounts:
        """Count before computing: the loss is divided by the label tokens of the whole step, over all processes."""
        counts = [sum(b.num_label_tokens for b in batches), sum(len(b.ids) for b in batches)]
        counts += [sum(len(b.skipped) for b in batches), *self.signals.counts()]
        # A place for each process: a sum over all of them then is a list of the waits.
        waits = [0.0] * self.world.world_size
        waits[self.world.rank] = data_wait
        sums = dist.all_reduce_sum([*counts, *waits])
        (label_tokens, seen, skipped), stops = sums[:3], sums[3 : len(counts)]
        return StepCounts(int(label_tokens), int(seen), int(skipped), received(stops), max(sums[len(counts) :]))

    def backward(self, batches: list[Batch], label_tokens: int) -> Gradients:
        """Gradients of the mean loss over `label_tokens`, accumulated in the parameters."""
        losses = self._accumulate(batches, label_tokens)
        norm = self._norm()
        numbers = [sum(losses), sum(b.useful for b in batches), sum(b.num_frames for b in batches)]
        numbers += [sum(b.positions for b in batches), self.flops.step_flops(batches) if self.flops else 0.0]
        sums = dist.all_reduce_sum([*numbers, *self.signals.counts()])
        (loss_sum, tokens, frames, positions, flops), stops = sums[:5], sums[5:]
        loss = loss_sum / label_tokens
        return Gradients(losses, loss, norm, int(tokens), int(frames), received(stops), int(positions), flops)

    def update(self, gradients: Gradients) -> None:
        """Clip to the stage's norm, step the optimizer, clear the gradients."""
        torch.nn.utils.clip_grads_with_norm_(self._trained(), self.stage.max_grad_norm, gradients.norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def buffers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each buffer that a forward pass changes (batch statistics that are trained), with a copy of its present."""
        modules = [m for m in self.vlm.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training]
        return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers(recurse=False)]

    def leave_out(self, kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Forget the gradients of a step that is not taken. kept: what `buffers` gave before it."""
        self.optimizer.zero_grad()
        self.optimizer._opt_called = True  # else the schedule warns that it is stepped first
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)

    def _accumulate(self, batches: list[Batch], label_tokens: int) -> list[float]:
        # FSDP takes the mean of gradients over processes; the factor world_size makes a sum of it again.
        scale = self.world.world_size / label_tokens
        losses = []
        for number, batch in enumerate(on_device(batches, self.world.device), start=1):
            fsdp.set_gradient_sync(self.vlm, self.stage.train_strategy, number == len(batches))
            loss_sum = self.vlm(batch).loss_sum
            (loss_sum * scale).backward()
            losses.append(loss_sum.detach())
        return torch.stack(losses).double().tolist()

    def _norm(self) -> torch.Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None])
        return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
