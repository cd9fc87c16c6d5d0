"""How much memory a run takes at its peak, on each process, before anything is computed.

What lies there all the time (weights, optimizer, gradients of earlier micro-batches) is counted; what comes and goes is
rehearsed (rehearsal.py) with the largest forward pass of the run. The figure is to be compared with
`torch.cuda.max_memory_allocated()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from prismatic.conf.models import ModelConfig, StageConfig
from prismatic.data.largest import MicroBatch
from prismatic.models.llm.lora import has_adapter, is_adapter_key
from prismatic.train import fsdp
from prismatic.train.memory.rehearsal import GRADIENTS, Sharding, rehearse
from prismatic.train.optim import OPTIMIZERS
from prismatic.train.optim.muon import hidden_matrices

GIB = 2**30
CONTEXT = 0.6 * GIB
"""CUDA's own context and its libraries' kernels on a GPU (about 0.5 GiB on an H100), and cuBLAS's workspaces."""
FRAGMENTS = 0.03
"""Share of the peak that the caching allocator holds in pieces that nothing fits into."""


@dataclass(frozen=True)
class Setup:
    """What a plan depends on beside the model and its data: the part of the configuration that can be changed to fit.

    processes, local: over all machines, and on one. half: computes in bf16 over fp32 weights (a GPU).
    """

    stage: StageConfig
    processes: int
    local: int
    half: bool
    reduce_fp32: bool
    checkpointing: bool
    offload: bool
    aggregator: tuple[str, Mapping[str, Any]] | None = None

    @classmethod
    def of(cls, model: ModelConfig, stage: str, *, processes: int, local: int, half: bool) -> Setup:
        """The setup that a configuration asks for."""
        return cls(
            stage=model.stage(stage),
            processes=processes,
            local=local,
            half=half and model.enable_mixed_precision_training,
            reduce_fp32=model.reduce_in_full_precision,
            checkpointing=model.enable_gradient_checkpointing,
            offload=model.cpu_offload,
        )

    def sharding(self) -> Sharding:
        """How the strategy lays weights over the processes."""
        row = fsdp.STRATEGIES.get(self.stage.train_strategy)
        shards = {"one": self.processes, "per-machine": self.local, "per-process": 1}[row.copies]
        together = self.stage.per_device_batch_size * self.processes
        return Sharding(
            shards=shards,
            reshard=row.reshard_after_forward,
            accumulates=self.stage.global_batch_size > together,
            sync=row.sync_every_micro_batch,
            number=2 if self.half else 4,
            reduced=2 if self.half and not self.reduce_fp32 else 4,
            offload=self.offload,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one process at the peak, by what they hold. note: how the figure came about, where it is weaker."""

    parts: dict[str, float]
    batch: MicroBatch
    note: str = ""

    @property
    def peak(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def needed(self) -> float:
        """What a GPU must have free for it: the peak, CUDA's own, and what is lost between pieces."""
        return self.peak * (1 + FRAGMENTS) + CONTEXT


def plan_memory(vlm: nn.Module, setup: Setup, batch: MicroBatch) -> MemoryPlan:
    """The plan for a model that is not sharded yet (on any device, the meta device too), its stage frozen."""
    sharding = setup.sharding()
    try:
        live = rehearse(vlm, batch, sharding, lambda twin: _prepare(twin, setup))
        passing, note = dict(live.at_peak), ""
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        # A model of its own kind whose code looks at numbers: the usual formula then, and it is said so.
        first = " ".join(str(error).split())[:120]
        passing, note = {"activations": _formula(vlm, batch, setup)}, f"activations by a formula ({first})"
    parts = {**_lasting(vlm, setup, sharding), **{f"{name}": float(size) for name, size in passing.items()}}
    # With several micro-batches a step, the gradients of the first are there from the begin of the second.
    trained = _count(vlm)
    if sharding.accumulates and not sharding.offload:
        parts[GRADIENTS] = 4.0 * trained / sharding.shards if sharding.sync else float(sharding.reduced * trained)
    # The optimizer's step: activations are gone, all gradients are there.
    spare = OPTIMIZERS.get(setup.stage.optimizer).step_bytes * trained / sharding.shards
    lasting = sum(_lasting(vlm, setup, sharding).values())
    stepping = {**_lasting(vlm, setup, sharding), GRADIENTS: 4.0 * trained / sharding.shards, "the step itself": spare}
    if not sharding.offload and sum(stepping.values()) > sum(parts.values()) >= lasting:
        parts = stepping
    return MemoryPlan({name: size for name, size in parts.items() if size}, batch, note)


def with_aggregator(vlm: Any, setup: Setup) -> Callable[[int], int]:
    """Visual tokens of a clip of T frames under the setup's aggregator."""
    if setup.aggregator is None:
        return vlm.tokens_per_clip
    module = _aggregator(vlm, setup)
    return lambda T: module.num_tokens(T, vlm.vision_backbone.num_patches)


def _aggregator(vlm: Any, setup: Setup) -> Any:
    from prismatic.models.aggregators import build_aggregator

    assert setup.aggregator is not None
    name, options = setup.aggregator
    vision = vlm.vision_backbone
    with torch.device("meta"):
        return build_aggregator(
            name, vision_dim=vision.embed_dim, num_patches=vision.num_patches, options=dict(options)
        )


def _prepare(twin: Any, setup: Setup) -> None:
    if setup.aggregator is not None:
        twin.aggregator = _aggregator(twin, setup)
    if setup.checkpointing:
        fsdp.checkpoint_layers(twin.llm_backbone.layers)


def _lasting(vlm: nn.Module, setup: Setup, sharding: Sharding) -> dict[str, float]:
    """What is there from one step to the next."""
    if setup.offload:
        return {}
    spec = OPTIMIZERS.get(setup.stage.optimizer)
    weights = state = 0.0
    matrices = hidden_matrices(vlm) if spec.matrix_bytes is not None else set()
    for module in vlm.children():
        half = setup.half and not _keeps_fp32(module)
        adapted = setup.half and has_adapter(module)
        for name, parameter in module.named_parameters():
            bf16 = half or (adapted and not is_adapter_key(name))
            weights += parameter.numel() * (2 if bf16 else 4)
            if parameter.requires_grad:
                each = spec.matrix_bytes if parameter in matrices and spec.matrix_bytes else spec.state_bytes
                state += parameter.numel() * each
    return {"weights": weights / sharding.shards, f"optimizer ({setup.stage.optimizer})": state / sharding.shards}


def _keeps_fp32(module: nn.Module) -> bool:
    """Whether `shard` leaves the module's weights in fp32: those of which a part is trained."""
    return has_adapter(module) or any(p.requires_grad for p in module.parameters())


def _count(vlm: nn.Module) -> int:
    return sum(p.numel() for p in vlm.parameters() if p.requires_grad)


def _formula(vlm: Any, batch: MicroBatch, setup: Setup) -> float:
    """34 bytes a position, layer and unit of width at 2 bytes a number (arXiv:2205.05198), and 10 a logit."""
    llm = vlm.llm_backbone
    number = 2 if setup.half else 4
    layers = len(llm.layers)
    kept = 2 * layers + 34 if setup.checkpointing else 34 * layers
    head = llm.llm.get_output_embeddings()
    vocabulary = head.weight.shape[0] if head is not None else 0
    return batch.rows * batch.length * llm.embed_dim * number / 2 * kept + batch.labels * vocabulary * (8 + number)


def changed(setup: Setup, **fields: Any) -> Setup:
    """The setup with fields of its stage, or of itself, changed."""
    own = {name: value for name, value in fields.items() if name in Setup.__dataclass_fields__}
    staged = {name: value for name, value in fields.items() if name not in own}
    return replace(setup, stage=replace(setup.stage, **staged), **own)
