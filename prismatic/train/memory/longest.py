"""The longest batch goes first: a run that does not fit fails in its first minute, not in its third night."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prismatic import dist
from prismatic.data.dataset import SampleError
from prismatic.dist import World
from prismatic.train.memory.forecast import memory_told
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.data.loader import StepLoader
    from prismatic.train.trainer import Trainer

log = logging.getLogger(__name__)


def largest_batch(loader: StepLoader) -> Batch | None:
    """The largest micro-batch of the first epoch, read in this process; None when it cannot be read."""
    try:
        return loader.largest()
    except (SampleError, OSError) as error:
        log.warning("the longest batch is not tried first: %s", error)
        return None


def first(trainer: Trainer) -> None:
    """Before the first step, if `--longest_batch_first` asks for it: `try_out` of the largest batch.

    Left out, with a warning, where a process cannot read it. Every process calls it.
    """
    cfg, stage, world = trainer.cfg, trainer.stage, trainer.world
    if cfg.longest_batch_first == "never" or (cfg.longest_batch_first == "auto" and world.device.type != "cuda"):
        return
    batch = largest_batch(trainer.train_loader)
    if not all(dist.gather_objects(batch is not None)):
        return
    assert batch is not None
    trainer.set_training(True)
    together = stage.per_device_batch_size * world.world_size // cfg.context_parallel_size
    passes = 2 if stage.global_batch_size > together else 1
    with memory_told(trainer.forecast, lambda: "the longest batch, tried before the first step"):
        try_out(trainer.vlm, trainer.optimizer, batch, world, passes=passes)


def try_out(vlm: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, world: World, *, passes: int) -> None:
    """Pass a batch forward and backward and forget about it: weights, buffers, gradients, random numbers stay.

    Every process calls it, in training mode. passes: 2 where gradients of earlier micro-batches lie beside the pass.
    The optimizer's state that the first step will make is held meanwhile, so that the peak is that of later steps.
    """
    began = time.perf_counter()
    buffers = [(buffer, buffer.detach().clone()) for buffer in vlm.buffers()]
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        state = _room_for_state(optimizer, world.device)
        for _ in range(passes):
            vlm(batch.to(world.device)).loss_sum.backward()
        del state
    optimizer.zero_grad()
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    peak = ""
    if world.device.type == "cuda":
        peak = f", {torch.cuda.max_memory_allocated(world.device) / 2**30:.1f} GiB at the peak"
    log.info(
        f"the longest batch first: {batch.input_ids.numel()} positions, {len(batch.frames)} frames in "
        f"{time.perf_counter() - began:.1f} s{peak}"
    )


def _room_for_state(optimizer: torch.optim.Optimizer, device: torch.device) -> Any:
    from prismatic.train.optim import state_bytes

    size = 0 if optimizer.state else int(state_bytes(optimizer, device))
    return torch.empty(size, dtype=torch.uint8, device=device)
