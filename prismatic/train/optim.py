"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from prismatic.conf.models import StageConfig
from prismatic.registry import unknown_id_message

SCHEDULES = ("linear-warmup+cosine-decay", "constant")


def build_optimizer(vlm: nn.Module, stage: StageConfig) -> torch.optim.AdamW:
    """AdamW over the trainable weights; biases and norms (one dimension or fewer) are not decayed.

    Call it after `shard()`, which replaces the parameters. Raises ValueError when nothing is trainable.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in vlm.named_parameters():
        if parameter.requires_grad:
            (others if parameter.ndim <= 1 or name.endswith(".bias") else decayed).append(parameter)
    if not decayed and not others:
        raise ValueError(f"--stage {stage.stage}: nothing in this model is trainable")
    groups = [
        {"params": decayed, "weight_decay": stage.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=stage.learning_rate, fused=True)


def check_schedule(name: str) -> None:
    """Raises ValueError for an unknown schedule."""
    if name not in SCHEDULES:
        raise ValueError(
            unknown_id_message("learning-rate schedule", name, SCHEDULES, "--model.finetune_lr_scheduler_type")
        )


def build_schedule(
    optimizer: torch.optim.Optimizer, name: str, total_steps: int, warmup_ratio: float, done: int = 0
) -> LambdaLR:
    """Linear warm-up from 0 over int(total_steps * warmup_ratio) steps, then cosine to 0 or constant.

    done: steps that were taken before; the rate is a function of the step, so there is no state to restore. Raises
    ValueError for an unknown name.
    """
    check_schedule(name)
    warmup = int(total_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if name == "constant":
            return 1.0
        share = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, factor, last_epoch=done - 1)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present learning rate of each group by its name."""
    return {group.get("name", "default"): float(group["lr"]) for group in optimizer.param_groups}
