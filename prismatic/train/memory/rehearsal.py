"""A training step without numbers: what is alive when, on one process, from the real code of the model.

The forward and backward pass run on a twin of the model on the meta device. What FSDP adds (gathered weights, buffers
of reductions, shards of gradients) is held in the same order as it allocates it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from prismatic.data.largest import MicroBatch
from prismatic.train.memory.live import LiveBytes
from prismatic.train.memory.twin import fused_attention, meta_twin

GATHERED, REDUCED, GRADIENTS = "gathered weights", "gradients on their way", "gradients"


@dataclass(frozen=True)
class Sharding:
    """How the weights lie over processes, as far as it takes memory.

    shards: processes that share one copy. reshard: gathered weights are freed between forward and backward pass.
    accumulates: a step has several micro-batches. sync: gradients are reduced after each of them. number, reduced:
    bytes of a number that is computed with, and of a gradient while it is summed. offload: shards are in the host's
    memory. context: processes that share each sequence.
    """

    shards: int
    reshard: bool
    accumulates: bool
    sync: bool
    number: int
    reduced: int
    offload: bool = False
    context: int = 1


def rehearse(
    vlm: nn.Module, batch: MicroBatch, sharding: Sharding, prepare: Callable[[Any], None] = lambda twin: None
) -> LiveBytes:
    """Count a forward and a backward pass. prepare: what is done to the model before it is sharded, on its twin.

    Weights, their optimizer's state and gradients from earlier micro-batches are not counted. Raises whatever the
    model's own code raises on the meta device (NotImplementedError, RuntimeError) where it looks at numbers.
    """
    twin = meta_twin(vlm, torch.bfloat16 if sharding.number == 2 else torch.float32)
    prepare(twin)
    live = LiveBytes()
    live.ignore([*twin.parameters(), *twin.buffers()])
    shards = _Shards(twin, sharding, live)
    with live, fused_attention():
        root = shards.gather_root()
        loss = _forward(twin, batch, sharding.context)
        loss.backward()
        del loss
        shards.finish()
        del root
    return live


def _forward(twin: Any, batch: MicroBatch, context: int) -> torch.Tensor:
    side = twin.vision_backbone.image_spec.resolution
    counts = batch.frames or (1,)
    frames = torch.empty(sum(counts), 3, side, side, dtype=torch.uint8, device="meta")
    visual = twin.encode(frames, counts)
    ids = torch.empty(batch.rows, batch.length, dtype=torch.int64, device="meta")
    embeds = twin.splice(ids, visual)
    if context > 1:  # Of attention, the keys and values that are gathered are not counted
        embeds = embeds[:, : -(-batch.length // context)].contiguous()
    places = torch.empty(max(1, batch.labels // context), dtype=torch.int64, device="meta")
    return twin.llm_backbone.token_losses(embeds, None, places, torch.empty_like(places))


class _Shards:
    """Holds what FSDP would, unit by unit."""

    def __init__(self, twin: Any, sharding: Sharding, live: LiveBytes) -> None:
        self._sharding, self._live = sharding, live
        self._gathered: dict[int, list[torch.Tensor]] = {}
        self._kept: list[torch.Tensor] = []  # Shards of gradients, to the end of the step
        self._in_flight: list[torch.Tensor] = []  # The input of the last reduction
        self._units: list[list[nn.Parameter]] = []
        self._open: list[set[nn.Parameter]] = []  # Of each unit, the weights that no gradient has reached yet
        self._trained: list[bool] = []
        # As `shard` has it: a tower of which nothing is trained stays gathered.
        self._kept_whole = None if any(p.requires_grad for p in twin.vision_backbone.parameters()) else 0
        owned: set[nn.Parameter] = set()
        modules = [*twin.fsdp_units(), twin]
        for number, unit in enumerate(modules):
            own = [p for p in dict.fromkeys(unit.parameters()) if p not in owned]
            owned.update(own)
            self._units.append(own)
            self._open.append({p for p in own if p.requires_grad})
            self._trained.append(bool(self._open[number]))
            for parameter in self._open[number]:
                parameter.register_post_accumulate_grad_hook(lambda p, n=number: self._accumulated(n, p))
            if unit is not twin:
                unit.register_forward_pre_hook(lambda *_, n=number: self._gather(n))
                unit.register_forward_hook(lambda _m, _i, output, n=number: self._after_forward(n, output))

    def gather_root(self) -> torch.Tensor:
        """The weights outside all units, which stay gathered through the whole pass."""
        return self._live.hold(self._bytes(len(self._units) - 1), GATHERED)

    def finish(self) -> None:
        """The end of the backward pass: what no gradient reached is let go, the root is reduced."""
        for number in range(len(self._units)):
            self._gathered.pop(number, None)
        self._in_flight.clear()

    def _bytes(self, number: int) -> int:
        return self._sharding.number * sum(p.numel() for p in self._units[number])

    def _gather(self, number: int) -> None:
        if number in self._gathered:
            return
        # What a collective delivers is copied into the weights: two buffers of its size, of which one goes with the
        # next unit. A process alone copies straight into the weights.
        held = [self._live.hold(self._bytes(number), GATHERED)]
        if self._sharding.shards > 1:
            held.append(self._live.hold(self._bytes(number), GATHERED))
            for other in self._gathered.values():
                del other[1:]
        self._gathered[number] = held

    def _after_forward(self, number: int, output: Any) -> None:
        if self._sharding.reshard and number != self._kept_whole:
            self._gathered.pop(number, None)
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda _grad, n=number: self._before_backward(n))

    def _before_backward(self, number: int) -> None:
        over = [n for n in self._gathered if n not in (number, self._kept_whole) and not self._trained[n]]
        for other in over if self._sharding.reshard else ():
            del self._gathered[other]
        self._gather(number)
        if self._sharding.shards > 1 and number > 1 and self._sharding.reshard:
            self._gather(number - 1)  # FSDP asks for the next unit while this one computes

    def _accumulated(self, number: int, parameter: nn.Parameter) -> None:
        waiting = self._open[number]
        waiting.discard(parameter)
        if waiting:
            return
        self._gathered.pop(number, None)
        trained = [p for p in self._units[number] if p.grad is not None]
        size = sum(p.numel() for p in trained)
        sharding = self._sharding
        if not sharding.sync and sharding.accumulates:
            for p in trained:  # Added to what the micro-batches before left, which the plan counts
                p.grad = None
        self._in_flight = [self._live.hold(size * sharding.reduced, REDUCED)]
        for p in trained:
            p.grad = None
        output = self._live.hold(size * sharding.reduced / sharding.shards, REDUCED)
        shard = self._live.hold(4 * size / sharding.shards, GRADIENTS)
        if not sharding.accumulates and not sharding.offload:
            self._kept.append(shard)
        del output, shard
