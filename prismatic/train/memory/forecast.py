"""The memory plan of a configuration, with its data: told before a run starts, and again when memory has run out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prismatic.conf.run import PretrainConfig
from prismatic.data.largest import Batching, ExampleSize, MicroBatch, largest_rows, micro_batch, size_of
from prismatic.dist import World
from prismatic.train.errors import TrainingError
from prismatic.train.memory.advice import advise, gib, lines, verdict
from prismatic.train.memory.plan import GIB, Planner, Setup, tokens_per_clip
from prismatic.train.memory.twin import meta_twin

if TYPE_CHECKING:
    from prismatic.data.dataset import ClipDataset

log = logging.getLogger(__name__)


class Forecast:
    """What a run will need. Made before the model is sharded, of which it keeps a twin without numbers.

    sizes: of the rows of the largest forward pass are taken from `dataset`. capacity: bytes of the device, None where
    there is none to plan for.
    """

    def __init__(self, cfg: PretrainConfig, vlm: Any, dataset: ClipDataset, world: World, packing: bool) -> None:
        on_gpu = world.device.type == "cuda"
        self.setup = Setup.of(
            cfg.model,
            cfg.stage,
            processes=world.world_size,
            local=world.local_world_size,
            on_gpu=on_gpu,
            context=cfg.context_parallel_size,
        )
        self.capacity = _capacity(cfg, world)
        self._vlm = meta_twin(vlm, torch.float32)
        self._dataset, self._packing, self._seed = dataset, packing, cfg.seed
        self._sizes: dict[int, list[ExampleSize]] = {}
        self.plan = Planner(self._vlm).plan(self.setup, self.batch_of(self.setup))

    def batch_of(self, setup: Setup) -> MicroBatch:
        """The largest forward pass of any process under a setup."""
        size = setup.stage.per_device_batch_size
        if size not in self._sizes:
            batching = Batching(setup.stage.global_batch_size, size, self._packing, self._seed)
            rows = largest_rows(self._dataset, self._dataset.num_examples(0), batching)
            self._sizes[size] = _sizes(self._dataset, rows)
        return micro_batch(self._sizes[size], tokens_per_clip(self._vlm, setup), self._packing)

    def lines(self) -> list[str]:
        """The plan, and whether it fits."""
        told = lines(self.plan)
        if self.capacity is None:
            return [*told, "                   whether it fits a device: pass its GiB, for example --device_memory 80"]
        return [*told, *verdict(self._vlm, self.setup, self.plan, self.capacity, self.batch_of)]

    def warn(self) -> None:
        """Say it in the log when the plan does not fit."""
        if self.capacity is not None and self.plan.needed > self.capacity:
            log.warning("This run is expected to run out of memory:\n%s", "\n".join(self.lines()))

    def way_out(self) -> str:
        """What to type now that the device was too small: the cheapest change that takes a tenth less."""
        limit = 0.9 * min(self.plan.needed, self.capacity or self.plan.needed)
        found = advise(self._vlm, self.setup, limit, self.batch_of)
        planned = f"planned were {gib(self.plan.peak)} at the peak"
        if not found.changes:
            return f"{planned}; take a smaller model, or more processes"
        costs = "; ".join(change.cost for change in found.changes)
        return f"{planned}; try {found.flags} ({gib(found.plan.peak)}; {costs})"


@contextmanager
def memory_told(forecast: Forecast | None, when: Callable[[], str]) -> Iterator[None]:
    """Raise TrainingError that says what to type when memory runs out inside. when: gives "step 7", for the text."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch.OutOfMemoryError is a RuntimeError; the allocator of a CPU raises a plain one.
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        first = " ".join(str(error).split())[:200]
        advice = forecast.way_out() if forecast is not None else "lower --model.finetune_per_device_batch_size"
        raise TrainingError(f"{when()}: out of memory ({first}); {advice}") from error


def _sizes(dataset: ClipDataset, rows: Sequence[int]) -> list[ExampleSize]:
    return [_size(dataset, row) for row in rows] or [ExampleSize((), dataset.max_length, dataset.max_length)]


def _size(dataset: ClipDataset, row: int) -> ExampleSize:
    record = dataset.records_by_epoch[0][row]
    try:
        return size_of(dataset, record)
    except ValueError as error:
        # Too long for the context, or without labels, which others say: its length is guessed.
        log.debug("row %d cannot be tokenized: %s", row, error)
        frames = tuple(dataset.read.count(medium) for medium in record.media)
        visual = sum(dataset.tokens_per_clip(T) for T in frames)
        text = int(dataset.lengths(np.array([row]))[0]) - visual
        return ExampleSize(frames, text, text)


def _capacity(cfg: PretrainConfig, world: World) -> float | None:
    if cfg.device_memory is not None:
        return cfg.device_memory * GIB
    if world.device.type == "cuda":
        return float(torch.cuda.get_device_properties(world.device).total_memory) if torch.cuda.is_available() else None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world.local_world_size
