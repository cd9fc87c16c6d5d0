"""The optimizers behind `--model.finetune_optimizer`, by id. To add one: a builder and a row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from prismatic.conf.models import StageConfig
from prismatic.registry import Registry
from prismatic.train.optim.groups import parameter_groups

log = logging.getLogger(__name__)

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerSpec:
    """A row of the registry.

    about: one line for `python -m prismatic list optimizer`. build: (model, groups of `parameter_groups`) -> optimizer.
    state_bytes: of its state for each trained number; matrix_bytes: of hidden matrices, None for the same. step_bytes:
    that the step itself takes on top, for each trained number. schedules: the only ones it makes sense with; () for
    all. package: that it needs.
    """

    about: str
    build: Callable[[nn.Module, Groups], torch.optim.Optimizer]
    state_bytes: float
    matrix_bytes: float | None = None
    step_bytes: float = 0
    schedules: tuple[str, ...] = ()
    package: str | None = None


OPTIMIZERS: Registry[OptimizerSpec] = Registry("optimizer", flag="--model.finetune_optimizer")


def check_optimizer(stage: StageConfig, cpu_offload: bool = False) -> None:
    """Before weights are read: raises ValueError for an unknown optimizer, a missing package, what does not go with it.

    cpu_offload: the optimizer works on weights in the host's memory.
    """
    from importlib.util import find_spec

    prefix = stage.prefix
    spec = OPTIMIZERS.get(stage.optimizer, f"{prefix}optimizer")
    if spec.package is not None and find_spec(spec.package) is None:
        raise ValueError(
            f"{prefix}optimizer {stage.optimizer} needs the package {spec.package}: pip install "
            "'prismatic[optimizers]', or use another optimizer"
        )
    if stage.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(f"{prefix}optimizer muon needs PyTorch 2.9 or newer; this is {torch.__version__}")
    if stage.optimizer == "muon" and cpu_offload:
        raise ValueError(
            f"{prefix}optimizer muon multiplies matrices in its step, which the host is too slow for; leave out "
            f"--model.cpu_offload true, or pass {prefix}optimizer adamw"
        )
    if spec.schedules and stage.lr_scheduler_type not in spec.schedules:
        raise ValueError(
            f"{prefix}optimizer {stage.optimizer} averages the weights in the place of a decay of the learning rate; "
            f"pass {prefix}lr_scheduler_type {spec.schedules[0]} with it, got {stage.lr_scheduler_type}"
        )


def build_optimizer(
    vlm: nn.Module, stage: StageConfig, learning_rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The stage's optimizer over the trainable weights; biases and norms (one dimension or fewer) are not decayed.

    learning_rates: peak rates of weights by pattern, others than the stage's. Call it after `shard()`, which replaces
    the parameters. Raises ValueError when nothing is trainable.
    """
    groups = parameter_groups(vlm, stage.learning_rate, stage.weight_decay, learning_rates)
    if not groups:
        raise ValueError(f"--stage {stage.stage}: nothing in this model is trainable")
    spec = OPTIMIZERS.get(stage.optimizer)
    optimizer = spec.build(vlm, groups)
    optimizer.state_bytes = spec.matrix_bytes or spec.state_bytes
    return optimizer


def state_bytes(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    """Bytes on `device` of the state that the optimizer's first step will make: of AdamW's size, or what it says."""
    each = getattr(optimizer, "state_bytes", OPTIMIZERS.get("adamw").state_bytes)
    local = [p.to_local() if isinstance(p, DTensor) else p for group in optimizer.param_groups for p in group["params"]]
    return each * sum(p.numel() for p in local if p.device.type == device.type)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[bool]:
    """Inside, the model has the weights to measure and to save: the averages of an optimizer that keeps some.

    Yields whether the weights are others than outside.
    """
    if not hasattr(optimizer, "averages"):
        yield False
        return
    with optimizer.averages():
        yield True


def _adamw(vlm: nn.Module, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)


def _adamw_bf16(vlm: nn.Module, groups: Groups) -> torch.optim.Optimizer:
    from prismatic.train.optim.half_states import HalfStateAdamW

    return HalfStateAdamW(groups)


def _adamw_8bit(vlm: nn.Module, groups: Groups) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    log.info("The optimizer adamw-8bit will be compiled at the first step, which takes a minute longer")
    # One rate in each group, as a tensor of its own: torchao compiles the rate in as an input.
    return AdamW8bit([{**group, "lr": torch.tensor(group["lr"])} for group in groups])


def _muon(vlm: nn.Module, groups: Groups) -> torch.optim.Optimizer:
    from prismatic.train.optim.muon import MuonAdamW, hidden_matrices

    return MuonAdamW(groups, hidden_matrices(vlm))


def _schedule_free(vlm: nn.Module, groups: Groups) -> torch.optim.Optimizer:
    from prismatic.train.optim.schedule_free import build

    return build(groups)


OPTIMIZERS.add("adamw", OptimizerSpec("AdamW, fused; moments in fp32.", _adamw, state_bytes=8))
OPTIMIZERS.add(
    "adamw-bf16",
    OptimizerSpec("AdamW with moments in bf16 and betas of 0.9 and 0.95.", _adamw_bf16, state_bytes=4),
)
OPTIMIZERS.add(
    "adamw-8bit",
    OptimizerSpec(
        "AdamW with moments in blocks of 8-bit numbers (torchao).",
        _adamw_8bit,
        state_bytes=2 + 8 / 256,  # Two codes, and the scales of two blocks of 256
        package="torchao",
    ),
)
OPTIMIZERS.add(
    "muon",
    OptimizerSpec("Muon for the matrices of hidden layers, AdamW for the rest.", _muon, state_bytes=8, matrix_bytes=4),
)
OPTIMIZERS.add(
    "schedule-free",
    OptimizerSpec(
        "Schedule-free AdamW: averages the weights instead of decaying the rate.",
        _schedule_free,
        state_bytes=8,
        step_bytes=4,
        schedules=("constant",),
        package="schedulefree",
    ),
)
