"""How much memory a run takes at its peak, on each process, before anything is computed.

What lies there all the time (weights, optimizer, gradients of earlier micro-batches) is counted; what comes and goes is
rehearsed (rehearsal.py) with the largest forward pass of the run. The figure is to be compared with
`torch.cuda.max_memory_allocated()`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from prismatic.conf.models import ModelConfig, StageConfig
from prismatic.data.largest import MicroBatch
from prismatic.models.llm.lora import has_adapter, is_adapter_key
from prismatic.train import fsdp
from prismatic.train.layers import checkpoint_layers
from prismatic.train.memory.rehearsal import GRADIENTS, Sharding, rehearse
from prismatic.train.optim import OPTIMIZERS
from prismatic.train.optim.muon import hidden_matrices

log = logging.getLogger(__name__)

GIB = 2**30
CONTEXT = 0.6 * GIB
"""CUDA's own context and its libraries' kernels on a GPU (about 0.5 GiB on an H100), and cuBLAS's workspaces."""
FRAGMENTS = 0.03
"""Share of the peak that the caching allocator holds in pieces that nothing fits into."""


@dataclass(frozen=True)
class Setup:
    """What a plan depends on beside the model and its data: the part of the configuration that can be changed to fit.

    processes, local: over all machines, and on one. on_gpu: planned for a GPU. half: computes in bf16 over fp32
    weights. context: processes that share each batch. aggregates: the model has an aggregator that could be another;
    aggregator: the id of that other one.
    """

    stage: StageConfig
    processes: int
    local: int
    on_gpu: bool
    half: bool
    reduce_fp32: bool
    recompute: str
    offload: bool
    context: int = 1
    aggregates: bool = False
    aggregator: str | None = None

    @classmethod
    def of(cls, model: ModelConfig, stage: str, *, processes: int, local: int, on_gpu: bool, context: int = 1) -> Setup:
        """The setup that a configuration asks for."""
        return cls(
            stage=model.stage(stage),
            processes=processes,
            local=local,
            on_gpu=on_gpu,
            half=on_gpu and model.enable_mixed_precision_training,
            reduce_fp32=model.reduce_in_full_precision,
            recompute=model.recompute,
            offload=model.cpu_offload and on_gpu,
            context=context,
            aggregates=model.model_path is None and model.frame_aggregator == "concat",
        )

    def changed(self, **fields: Any) -> Setup:
        """The same with fields of it, or of its stage, changed."""
        own = {name: value for name, value in fields.items() if name in Setup.__dataclass_fields__}
        staged = {name: value for name, value in fields.items() if name not in own}
        return replace(self, stage=replace(self.stage, **staged), **own)

    def sharding(self) -> Sharding:
        """How the strategy lays weights over the processes."""
        row = fsdp.STRATEGIES.get(self.stage.train_strategy)
        shards = {"one": self.processes, "per-machine": self.local, "per-process": 1}[row.copies]
        together = self.stage.per_device_batch_size * self.processes // self.context
        return Sharding(
            shards=shards,
            reshard=row.reshard_after_forward,
            accumulates=self.stage.global_batch_size > together,
            sync=row.sync_every_micro_batch,
            number=2 if self.half else 4,
            reduced=2 if self.half and not self.reduce_fp32 else 4,
            offload=self.offload,
            context=self.context,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one process at the peak, by what they hold. note: how the figure came about, where it is weaker."""

    parts: dict[str, float]
    batch: MicroBatch
    on_gpu: bool
    note: str = ""

    @property
    def peak(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def needed(self) -> float:
        """What a device must have free for it: on a GPU also CUDA's own, and what is lost between pieces."""
        return self.peak * (1 + FRAGMENTS) + CONTEXT if self.on_gpu else self.peak


class Planner:
    """Plans for a model that is not sharded yet (on any device, the meta device too), its stage frozen."""

    def __init__(self, vlm: Any) -> None:
        self._vlm = vlm
        self._trained = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
        self._rehearsed: dict[Any, tuple[dict[str, int], str]] = {}

    def plan(self, setup: Setup, batch: MicroBatch) -> MemoryPlan:
        """The memory of a run with this setup whose largest forward pass is `batch`."""
        sharding = setup.sharding()
        lasting = self._lasting(setup, sharding)
        passing, note = self._passing(setup, sharding, batch)
        parts = {**lasting, **passing}
        if sharding.accumulates and not sharding.offload:
            # The gradients of the first micro-batches are there from the begin of the last: in shards, or whole.
            parts[GRADIENTS] = self._trained * (4.0 / sharding.shards if sharding.sync else sharding.reduced)
        # The optimizer's step: activations are gone, all gradients are there.
        spare = OPTIMIZERS.get(setup.stage.optimizer).step_bytes * self._trained / sharding.shards
        stepping = {**lasting, GRADIENTS: 4.0 * self._trained / sharding.shards, "the optimizer's step": spare}
        if not sharding.offload and sum(stepping.values()) > sum(parts.values()):
            parts = stepping
        return MemoryPlan({name: size for name, size in parts.items() if size}, batch, setup.on_gpu, note)

    def _passing(self, setup: Setup, sharding: Sharding, batch: MicroBatch) -> tuple[dict[str, int], str]:
        key = (sharding, batch, setup.recompute, setup.aggregator)
        if key not in self._rehearsed:
            try:
                live = rehearse(self._vlm, batch, sharding, lambda twin: _prepare(twin, setup))
                self._rehearsed[key] = live.at_peak, ""
            except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
                # Code that looks at numbers, of which the meta device has none: the usual formula, and it is said.
                log.debug("the step could not be rehearsed", exc_info=True)
                why = " ".join(str(error).split())[:120]
                found = {"activations": int(_formula(self._vlm, batch, setup))}
                self._rehearsed[key] = found, f"activations by a formula, this model cannot be rehearsed: {why}"
        return self._rehearsed[key]

    def _lasting(self, setup: Setup, sharding: Sharding) -> dict[str, float]:
        """What is there from one step to the next."""
        if setup.offload:
            return {}
        spec = OPTIMIZERS.get(setup.stage.optimizer)
        weights = state = 0.0
        matrices = hidden_matrices(self._vlm) if spec.matrix_bytes is not None else set()
        for module in self._vlm.children():
            trains = any(p.requires_grad for p in module.parameters())
            for name, parameter in module.named_parameters():
                # As `shard` leaves them: modules of which nothing is trained, and what lies below adapters.
                half = setup.half and (not trains or (has_adapter(module) and not is_adapter_key(name)))
                weights += parameter.numel() * (2 if half else 4)
                if parameter.requires_grad:
                    each = spec.matrix_bytes if parameter in matrices and spec.matrix_bytes else spec.state_bytes
                    state += parameter.numel() * each
        return {"weights": weights / sharding.shards, f"optimizer {setup.stage.optimizer}": state / sharding.shards}


def tokens_per_clip(vlm: Any, setup: Setup) -> Callable[[int], int]:
    """Visual tokens of a clip of T frames, under the setup's aggregator."""
    if setup.aggregator is None:
        return vlm.tokens_per_clip
    module = _aggregator(vlm, setup)
    return lambda T: module.num_tokens(T, vlm.vision_backbone.num_patches)


def _aggregator(vlm: Any, setup: Setup) -> Any:
    from prismatic.models.aggregators import build_aggregator

    assert setup.aggregator is not None
    vision = vlm.vision_backbone
    with torch.device("meta"):
        return build_aggregator(setup.aggregator, vision_dim=vision.embed_dim, num_patches=vision.num_patches)


def _prepare(twin: Any, setup: Setup) -> None:
    llm = twin.llm_backbone.llm
    if llm.config._attn_implementation in ("flex_attention", "flash_attention_2"):
        llm.set_attn_implementation("sdpa")  # Kernels that want numbers; the stand-in keeps what they keep
    if setup.aggregator is not None:
        twin.aggregator = _aggregator(twin, setup)
    checkpoint_layers(twin.llm_backbone.layers, setup.recompute)


def _formula(vlm: Any, batch: MicroBatch, setup: Setup) -> float:
    """34 bytes a position, layer and unit of width at 2 bytes a number (arXiv:2205.05198), and 10 a logit."""
    llm = vlm.llm_backbone
    number = 2 if setup.half else 4
    layers = len(llm.layers)
    kept = 2 * layers + 34 if setup.recompute == "full" else 34 * layers
    head = llm.llm.get_output_embeddings()
    vocabulary = head.weight.shape[0] if head is not None else 0
    return batch.rows * batch.length * llm.embed_dim * number / 2 * kept + batch.labels * vocabulary * (8 + number)
