"""What to type when a run does not fit: the cheapest change of the configuration with which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from prismatic.data.largest import MicroBatch
from prismatic.train.memory.plan import GIB, MemoryPlan, Planner, Setup

RECOMPUTE_COSTS = (("full", "about a third"), ("selective", "a few percent"))

BatchOf = Callable[[Setup], MicroBatch]
"""The largest forward pass under a setup: its batch size and aggregator count."""


@dataclass(frozen=True)
class Change:
    """One change. kind: what it is a change of. fields: of Setup or its stage. flags: to type. cost: in words."""

    kind: str
    fields: dict[str, Any]
    flags: str
    cost: str


@dataclass(frozen=True)
class Advice:
    """Changes that make a run fit, together; `plan` is that of the run with them. fits: False: not even so."""

    changes: tuple[Change, ...]
    plan: MemoryPlan
    fits: bool

    @property
    def flags(self) -> str:
        """What to add to the command."""
        return " ".join(change.flags for change in self.changes)


def advise(vlm: nn.Module, setup: Setup, capacity: float, batch_of: BatchOf) -> Advice:
    """The cheapest change that fits into `capacity` bytes a process; several together where none does alone.

    Cheapest first: what changes no number (smaller batches, sharding), what costs time (recomputing), what changes the
    optimizer's precision, the host's memory, and last what changes the model.
    """
    planner = Planner(vlm)

    def plan(changes: Sequence[Change]) -> MemoryPlan:
        changed = setup.changed(**{k: v for change in changes for k, v in change.fields.items()})
        return planner.plan(changed, batch_of(changed))

    offered = list(_changes(setup))
    for change in offered:
        if (found := plan([change])).needed <= capacity:
            return Advice((change,), found, True)
    # Of each kind the furthest, one after another, as long as it helps; then back what is not needed, dearest first.
    furthest = list({change.kind: change for change in offered}.values())
    taken: list[Change] = []
    found = plan(taken)
    for change in furthest:
        tried = plan([*taken, change])
        if tried.needed < found.needed:
            taken, found = [*taken, change], tried
        if found.needed <= capacity:
            break
    for change in reversed(taken[:-1]) if found.needed <= capacity else ():
        fewer = [c for c in taken if c is not change]
        if (tried := plan(fewer)).needed <= capacity:
            taken, found = fewer, tried
    return Advice(tuple(taken), found, found.needed <= capacity)


def _changes(setup: Setup) -> Iterator[Change]:
    stage = setup.stage
    prefix = stage.prefix
    size = stage.per_device_batch_size
    while size > 1:
        size = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        flag = f"{prefix}per_device_batch_size {size}"
        yield Change("batch", {"per_device_batch_size": size}, flag, "smaller forward passes, the same step")
    if setup.processes > 1 and stage.train_strategy != "fsdp-full-shard":
        flag = f"{prefix}train_strategy fsdp-full-shard"
        yield Change("strategy", {"train_strategy": "fsdp-full-shard"}, flag, "weights travel more, the same step")
    for how, cost in RECOMPUTE_COSTS[: {"none": 2, "selective": 1, "full": 0}[setup.recompute]][::-1]:
        flag = f"--model.activation_checkpointing {how}"
        yield Change("recompute", {"recompute": how}, flag, f"{cost} more computing, the same step")
    if stage.optimizer == "adamw" and not setup.offload:
        flag = f"{prefix}optimizer adamw-bf16"
        yield Change("optimizer", {"optimizer": "adamw-bf16"}, flag, "moments of 8 significant bits")
        more = "" if find_spec("torchao") else ", after pip install 'prismatic[optimizers]'"
        flag = f"{prefix}optimizer adamw-8bit"
        yield Change("optimizer", {"optimizer": "adamw-8bit"}, flag, f"moments of 8 bits in all{more}")
    if not setup.offload and setup.on_gpu:
        cost = "weights come from the host's memory, the optimizer runs on the CPU: several times slower"
        yield Change("offload", {"offload": True}, "--model.cpu_offload true", cost)
    if setup.aggregator is None and setup.aggregates:
        for name in ("spatial-pool", "mean"):
            flag = f"--model.frame_aggregator {name}"
            yield Change("aggregator", {"aggregator": name}, flag, "fewer visual tokens: another model")


def lines(plan: MemoryPlan) -> list[str]:
    """The plan as a table: a line for the sum, then one for each part."""
    batch = plan.batch
    what = f"{batch.rows} x {batch.length} positions with {sum(batch.frames)} frames"
    return [
        f"memory             about {gib(plan.peak)} at the peak on each process, at {what}:",
        *(f"                   {gib(size):>14}  {name}" for name, size in plan.parts.items() if size),
        *([f"                   {plan.note}"] if plan.note else []),
    ]


def verdict(vlm: nn.Module, setup: Setup, plan: MemoryPlan, capacity: float, batch_of: BatchOf) -> list[str]:
    """Whether the plan fits into `capacity` bytes, and what to type where it does not."""
    found = advise(vlm, setup, capacity, batch_of) if plan.needed > capacity else None
    cuda = " with what CUDA itself takes" if setup.on_gpu else ""
    if found is None:
        return [f"fits               {gib(plan.needed)}{cuda}, of {gib(capacity)}"]
    told = [f"does not fit       {gib(plan.needed)}{cuda}, of {gib(capacity)}"]
    if not found.changes:
        return [*told, "to fit             no flag makes it smaller: take a smaller model, or more processes"]
    text = "with" if found.fits else "not even with"
    told.append(f"to fit             {text} {found.flags}: {gib(found.plan.needed)}")
    return [*told, *(f"                   {change.flags}: {change.cost}" for change in found.changes)]


def gib(size: float) -> str:
    """Bytes for people, in GiB."""
    number = size / GIB
    if 0 < number < 0.001:
        return "< 0.001 GiB"
    return f"{number:,.0f} GiB" if number >= 100 else f"{number:.3g} GiB"
