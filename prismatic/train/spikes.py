"""Loss spikes: steps whose loss stands far above those before, with the examples that were in them.

A file of them (`spikes.jsonl`) says which samples to look at, long after the curve has come down again.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismatic import dist
from prismatic.train.jsonl import RowFile
from prismatic.types import Batch

log = logging.getLogger(__name__)

MIN_LOSSES = 24  # Before so many there is no telling what is usual
DEVIATIONS = 8.0  # of the usual scatter, above the median
MIN_RISE = 0.2  # of the median: a run without any scatter has no spikes of a thousandth
MICRO_BATCHES, IDS = 4, 16  # of each process in the file, worst first; and of a micro-batch
SHOWN = 5  # that appear in the log; the rest only in the file


def is_spike(before: Sequence[float], loss: float) -> bool:
    """Whether a loss stands out from those before it.

    By median and median absolute deviation, which earlier spikes do not move: 1.4826 MAD is a standard deviation where
    the scatter is normal. The median of the second half is taken, so that a curve that falls steeply is not late.
    """
    if len(before) < MIN_LOSSES:
        return False
    recent = before[len(before) // 2 :]
    middle = statistics.median(recent)
    scatter = 1.4826 * statistics.median(abs(value - middle) for value in recent)
    return loss - middle > max(DEVIATIONS * scatter, MIN_RISE * abs(middle))


class SpikeReport:
    """Watches the losses of a run. Every process calls `look` alike; rank 0 writes."""

    def __init__(self, run_dir: Path) -> None:
        self._file = RowFile(run_dir / "spikes.jsonl")
        self.count = 0

    def resume(self, step: int) -> None:
        """Go on after `step`: spikes of later steps, which come again, are cut."""
        if dist.rank_zero():
            self._file.keep(lambda _number, row: row["step"] <= step)

    def look(
        self, step: int, loss: float, before: Sequence[float], batches: Sequence[Batch], losses: Sequence[float]
    ) -> bool:
        """Report step `step` if its loss is a spike. losses: sums of this process's micro-batches."""
        if not is_spike(before, loss):
            return False
        gathered = [row for rows in dist.gather_objects(worst(batches, losses)) for row in rows]
        gathered.sort(key=lambda row: -row["loss"])
        usual = statistics.median(before)
        self.count += 1
        if dist.rank_zero():
            self._file.append({"step": step, "loss": loss, "usual": usual, "micro_batches": gathered})
            if self.count <= SHOWN:
                log.warning(
                    f"step {step}: loss {loss:.4f} is a spike (usual: {usual:.4f}). Highest in the micro-batch of "
                    f"{', '.join(gathered[0]['ids'][:8])}: {gathered[0]['loss']:.4f}. {self._file.path} lists the rest"
                )
        return True


def worst(batches: Sequence[Batch], losses: Sequence[float]) -> list[dict[str, Any]]:
    """{"loss" a token, "ids"} of this process's micro-batches with the highest loss."""
    means = [total / max(1, batch.num_label_tokens) for batch, total in zip(batches, losses, strict=True)]
    order = sorted(range(len(batches)), key=lambda i: -means[i])[:MICRO_BATCHES]
    return [{"loss": means[i], "ids": list(batches[i].ids[:IDS])} for i in order]
