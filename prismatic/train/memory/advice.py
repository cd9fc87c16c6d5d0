"""What to type when a run does not fit: the cheapest change of the configuration with which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from prismatic.data.largest import MicroBatch
from prismatic.train.memory.plan import GIB, MemoryPlan, Setup, changed, plan_memory

BatchOf = Callable[[Setup], MicroBatch]
"""The largest forward pass under a setup: its batch size and aggregator count."""


@dataclass(frozen=True)
class Change:
    """One change. flags: to type. cost: what it costs, in words."""

    setup: Setup
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
    for change in _changes(setup):
        found = plan_memory(vlm, change.setup, batch_of(change.setup))
        if found.needed <= capacity:
            return Advice((change,), found, True)
    together: list[Change] = []
    names: set[str] = set()
    plan = plan_memory(vlm, setup, batch_of(setup))
    while True:
        # Of each kind the furthest, on top of those before: half the batch is of no use here.
        options = [c for c in _changes(setup) if c.flags.split()[0] not in names]
        if not options:
            return Advice(tuple(together), plan, False)
        kind = options[0].flags.split()[0]
        names.add(kind)
        candidate = [c for c in options if c.flags.split()[0] == kind][-1]
        tried = plan_memory(vlm, candidate.setup, batch_of(candidate.setup))
        if tried.needed >= plan.needed:
            continue
        setup, plan = candidate.setup, tried
        together.append(candidate)
        if plan.needed <= capacity:
            return Advice(tuple(together), plan, True)


def _changes(setup: Setup) -> Iterator[Change]:
    stage = setup.stage
    prefix = "--model.align_" if stage.stage == "align" else "--model.finetune_"
    size = stage.per_device_batch_size
    while size > 1:
        size = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        yield Change(
            changed(setup, per_device_batch_size=size),
            f"{prefix}per_device_batch_size {size}",
            "more and smaller forward passes; the same step",
        )
    if setup.processes > 1 and stage.train_strategy != "fsdp-full-shard":
        yield Change(
            changed(setup, train_strategy="fsdp-full-shard"),
            f"{prefix}train_strategy fsdp-full-shard",
            "weights travel once more in each pass; the same step",
        )
    if not setup.checkpointing:
        yield Change(
            changed(setup, checkpointing=True),
            "--model.enable_gradient_checkpointing true",
            "about a third more computing; the same step",
        )
    yield from _optimizer_changes(setup, prefix)
    if not setup.offload and setup.half:
        yield Change(
            changed(setup, offload=True),
            "--model.cpu_offload true",
            "weights travel from the host's memory, the optimizer runs on the CPU: several times slower",
        )
    if setup.aggregator is None:
        for name, options in (("spatial-pool", {"stride": 2}), ("mean", {})):
            yield Change(
                changed(setup, aggregator=(name, options)),
                f"--model.frame_aggregator {name}",
                "fewer visual tokens: another model",
            )


def _optimizer_changes(setup: Setup, prefix: str) -> Iterator[Change]:
    if setup.stage.optimizer != "adamw" or setup.offload:
        return
    yield Change(
        changed(setup, optimizer="adamw-bf16"), f"{prefix}optimizer adamw-bf16", "moments of 8 significant bits"
    )
    missing = "" if find_spec("torchao") else " (pip install 'prismatic[optimizers]')"
    yield Change(
        changed(setup, optimizer="adamw-8bit"),
        f"{prefix}optimizer adamw-8bit",
        f"moments of 8 bits in all{missing}",
    )


def lines(plan: MemoryPlan) -> list[str]:
    """The plan as a table: a line for the sum, then one for each part."""
    batch = plan.batch
    what = f"{batch.rows} x {batch.length} positions, {sum(batch.frames)} frames"
    return [
        f"memory             about {_short(plan.peak)} GiB at the peak on each process ({what}):",
        *(f"                   {_short(size):>10} GiB  {name}" for name, size in plan.parts.items() if size),
        *([f"                   {plan.note}"] if plan.note else []),
    ]


def verdict(vlm: nn.Module, setup: Setup, plan: MemoryPlan, capacity: float, batch_of: BatchOf) -> list[str]:
    """Whether the plan fits into `capacity` bytes, and what to type where it does not."""
    room = f"{_short(capacity)} GiB"
    if plan.needed <= capacity:
        return [f"fits               {_short(plan.needed)} GiB with what CUDA itself takes, of {room}"]
    found = advise(vlm, setup, capacity, batch_of)
    told = [f"does not fit       {_short(plan.needed)} GiB with what CUDA itself takes, of {room}"]
    if not found.fits:
        return [*told, f"                   all of {found.flags} together leave {_short(found.plan.needed)} GiB"]
    told.append(f"to fit             {found.flags}   ({_short(found.plan.needed)} GiB)")
    return [*told, *(f"                   {c.flags}: {c.cost}" for c in found.changes)]


def _short(size: float) -> Any:
    number = size / GIB
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
