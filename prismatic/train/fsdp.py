"""Spread a model over processes: `shard()`, the only place that knows FSDP2.

Order of work on a model: freeze > load weights > shard (activation checkpointing, compiling, then `fully_shard` of the
vision tower, of each decoder layer and of the root) > optimizer. Sharding is always applied, with one process too, so
that precision and code path are the same everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from prismatic.dist import World
from prismatic.models.linear import use_onednn
from prismatic.models.llm.lora import cast_base, has_adapter
from prismatic.registry import Registry
from prismatic.train.layers import checkpoint_layers, compile_layers

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Strategy:
    """How parameters lie over processes.

    copies: one copy over all processes, one "per-machine", or one "per-process" (plain data parallelism).
    reshard_after_forward: free a unit's gathered weights between forward and backward: less memory, more traffic.
    sync_every_micro_batch: reduce gradients after each micro-batch of a step, which keeps only a shard of them in
        memory, or once at the end of the step.
    """

    copies: Literal["one", "per-machine", "per-process"]
    reshard_after_forward: bool
    sync_every_micro_batch: bool


STRATEGIES: Registry[Strategy] = Registry("training strategy", flag="--model.finetune_train_strategy")
STRATEGIES.add("fsdp-full-shard", Strategy("one", True, True))
STRATEGIES.add("fsdp-shard-grad-op", Strategy("one", False, True))
STRATEGIES.add("fsdp-hybrid", Strategy("per-machine", True, True))
STRATEGIES.add("ddp", Strategy("per-process", False, False))


def shard(
    vlm: PrismaticVLM,
    world: World,
    strategy: str,
    *,
    mixed_precision: bool,
    reduce_fp32: bool,
    recompute: str = "full",
    compile_blocks: bool = False,
    cpu_offload: bool = False,
) -> PrismaticVLM:
    """Shard `vlm` in place over all processes and return it. Its stage must be frozen and its weights loaded.

    Args:
        strategy: an id of STRATEGIES. Raises UnknownIdError (a ValueError) for another.
        mixed_precision: on CUDA, compute in bf16 over fp32 master weights, and keep frozen modules (and the LLM's own
            weights below adapters) in bf16. A CPU always computes in fp32.
        reduce_fp32: with mixed precision, sum gradients over processes in fp32 instead of bf16.
        recompute: what of the LLM's layers is computed again in the backward pass: "none", "full", "selective".
        compile_blocks: compile the LLM's layers and the blocks of the vision tower.
        cpu_offload: weights, gradients and optimizer lie in the host's memory; a unit's weights come to the GPU when it
            computes. On a CPU it changes nothing: they lie there anyway.

    With `vlm.whole_vision` every process keeps the whole, frozen vision tower: with a feature cache one process may
    need it where another does not, and a sharded tower makes them wait for each other for ever.
    """
    row = STRATEGIES.get(strategy)
    bf16 = mixed_precision and world.device.type == "cuda"
    if mixed_precision and not bf16:
        log.info("A CPU computes in fp32: --model.enable_mixed_precision_training has no effect on it")
    if bf16:
        cast_frozen(vlm, torch.bfloat16)
    if world.device.type == "cpu":
        use_onednn(vlm)  # again: adapters have come in since the model was built
    checkpoint_layers(vlm.llm_backbone.layers, recompute)
    if compile_blocks:
        compile_layers(vlm.compile_units())
    policy = MixedPrecisionPolicy()
    if bf16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32 if reduce_fp32 else torch.bfloat16)
    offload = cpu_offload and world.device.type != "cpu"
    if cpu_offload and not offload:
        log.info("--model.cpu_offload has no effect on a CPU: the weights are in its memory already")
    place = _unit_options(policy, _mesh(world, row), offload)
    whole = vlm.vision_backbone.to(world.device) if vlm.whole_vision else None
    for unit in [unit for unit in vlm.fsdp_units() if unit is not whole]:
        fully_shard(unit, reshard_after_forward=_frees(vlm, unit, row), **place)
        if _kept(vlm, unit):
            unit.set_reshard_after_backward(False)  # The end of each backward pass frees every unit otherwise
    # The root's own weights (embeddings, head, projector) are needed at both ends of the pass: freeing them between
    # would gather them twice for nothing.
    ignored = set(whole.parameters()) if whole is not None else None
    fully_shard(vlm, reshard_after_forward=False, ignored_params=ignored, **place)
    return vlm


def _kept(vlm: PrismaticVLM, unit: nn.Module) -> bool:
    """Whether a unit is gathered once for all: a tower that is frozen has no backward pass, and never changes."""
    return unit is vlm.vision_backbone and not any(p.requires_grad for p in unit.parameters())


def _frees(vlm: PrismaticVLM, unit: nn.Module, row: Strategy) -> bool:
    """Whether a unit's gathered weights are freed after its forward pass."""
    return row.reshard_after_forward and not _kept(vlm, unit)


def _unit_options(policy: MixedPrecisionPolicy, mesh: DeviceMesh, cpu_offload: bool) -> dict[str, Any]:
    """Options of `fully_shard` that all units share."""
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    if cpu_offload:
        # Pinned, so that weights and gradients travel beside the computation; a CPU alone has nothing to pin for.
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    return options


def set_gradient_sync(vlm: nn.Module, strategy: str, last_micro_batch: bool) -> None:
    """Before a micro-batch's forward pass: whether its backward pass reduces gradients over processes."""
    assert isinstance(vlm, FSDPModule)
    mesh = next(p.device_mesh for p in vlm.parameters() if isinstance(p, DTensor))
    # One process alone keeps whole gradients anyway, and reducing them is copying them. (Not on a GPU, where gradients
    # that wait are in bf16 and their sum is in fp32.)
    alone = mesh.size() == 1 and mesh.device_type == "cpu"
    every = STRATEGIES.get(strategy).sync_every_micro_batch and not alone
    vlm.set_requires_gradient_sync(last_micro_batch or every)


def reshard(vlm: nn.Module) -> None:
    """Free gathered weights that a forward pass without a backward pass left behind."""
    for module in vlm.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _mesh(world: World, row: Strategy) -> DeviceMesh:
    # The device type is spelled out: without a mesh, fully_shard on a CPU-only machine asks for an accelerator.
    size, kind = world.world_size, world.device.type
    if row.copies == "one":
        return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    shards = 1 if row.copies == "per-process" else world.local_world_size
    return init_device_mesh(kind, (size // shards, shards), mesh_dim_names=("replicate", "shard"))


def cast_frozen(vlm: nn.Module, dtype: torch.dtype) -> None:
    """Turn the frozen children of `vlm` (and the LLM's own weights below adapters) into `dtype`."""
    # Only whole frozen modules: FSDP wants one dtype among the trainable weights of a unit, and a frozen weight inside
    # a trained module may be thawed later. Batch statistics follow their weights; buffers that are not saved stay as
    # they are: rotary frequencies in bf16 would blur the positions.
    for module in vlm.children():
        if has_adapter(module):
            cast_base(module, dtype)
            continue
        if any(p.requires_grad for p in module.parameters()):
            continue
        for part in module.modules():
            tensors = list(part.parameters(recurse=False))
            tensors += [b for n, b in part.named_buffers(recurse=False) if n not in part._non_persistent_buffers_set]
            for tensor in tensors:
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)


@contextmanager
def gathered(vlm: nn.Module, strategy: str) -> Iterator[None]:
    """Inside, every process has all weights in the precision of computing, and no forward pass talks to the others.

    For work that processes do at their own pace, such as generating answers of different lengths. The model must have
    run forward as a whole before; every process enters and leaves.
    """
    units = [module for module in vlm.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            # As `shard` has set it: the root never frees its weights between forward and backward.
            frees = unit is not vlm and _frees(vlm, unit, STRATEGIES.get(strategy))
            unit.set_reshard_after_forward(frees, recurse=False)
