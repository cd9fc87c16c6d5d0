"""Which processes work on one batch together (`--context_parallel_size`), and which data each of them reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.distributed.device_mesh import init_device_mesh

from prismatic.dist import World
from prismatic.models.llm.context import ContextShards
from prismatic.types import Batch


@dataclass(frozen=True)
class DataShare:
    """The part of the data that a process reads: as `rank` of `world_size`. shards: None where it reads alone.

    Of the processes that read the same, `echo` says that this is not the first: its batches count for nothing.
    """

    rank: int
    world_size: int
    shards: ContextShards | None = None

    @property
    def echo(self) -> bool:
        """Whether another process counts these batches."""
        return self.shards is not None and self.shards.rank > 0

    def own(self, batch: Batch) -> Batch:
        """The batch as this process has it."""
        return replace(batch, ids=(), useful=0, skipped=(), echo=True) if self.echo else batch


def share_data(world: World, size: int) -> DataShare:
    """Groups of `size` processes next to each other, which share their batches. Every process calls it."""
    if size == 1:
        return DataShare(world.rank, world.world_size)
    groups = world.world_size // size
    mesh = init_device_mesh(world.device.type, (groups, size), mesh_dim_names=("data", "context"))["context"]
    shards = ContextShards(world.rank % size, size, mesh.get_group())
    return DataShare(world.rank // size, groups, shards)
