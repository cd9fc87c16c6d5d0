"""The account of samples that `on_error skip` left out, of the training or of the validation data."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from prismatic import dist
from prismatic.train.errors import TrainingError
from prismatic.train.jsonl import RowFile
from prismatic.types import Batch, Skip

log = logging.getLogger(__name__)

SHOWN = 5  # Skips that appear in the log one by one; the rest only in the file


class SkipAccount:
    """Counts seen and skipped samples over all processes, lists the skipped in a file, and stops the run.

    max_share: the limit. Held exactly at the end of each epoch. Within one the run stops when there are more than
    chance would bring at that share (three standard deviations), from the first 1/max_share samples on: some broken
    files that happen to come early do not stop a long run, and a folder that is not mounted soon does. flag: where it
    is set, for the text of the error.
    """

    def __init__(self, path: Path, max_share: float, flag: str = "--dataset.max_skipped_share") -> None:
        self.seen = 0
        self.skipped = 0
        self._max_share = max_share
        self._flag = flag
        self._shown = 0
        self._file = RowFile(path)

    def resume(self, seen: int, skipped: int) -> None:
        """Go on from these counts; rows of later steps, which come anew, are cut from the file."""
        self.seen, self.skipped = seen, skipped
        if dist.rank_zero():
            self._file.keep(lambda number, _row: number < skipped)

    def add(self, batches: Iterable[Batch], seen: int, skipped: int) -> None:
        """Account for one step. seen, skipped: counts of the step over all processes, which all call this alike.

        Raises TrainingError when the share of skipped samples is above the limit.
        """
        self.seen += seen
        if skipped:
            own = [skip for batch in batches for skip in batch.skipped]
            for skips in dist.gather_objects(own):
                for skip in skips:
                    self._note(skip)
            self.check(early=True)

    def check(self, early: bool = False) -> None:
        """Raises TrainingError when too many were skipped. early: within an epoch, when that may be chance."""
        allowed = self._max_share * self.seen
        if early and allowed < 1 and self._max_share:
            return
        if self.skipped > allowed + (3.0 * math.sqrt(allowed) if early else 0.0):
            raise TrainingError(
                f"{self.skipped} of {self.seen} samples were skipped, more than {self._flag} "
                f"{self._max_share:g} allows; {self._file.path} lists them with the reasons. Mend or remove them, or "
                f"raise {self._flag}"
            )

    def _note(self, skip: Skip) -> None:
        self.skipped += 1
        if not dist.rank_zero():
            return
        self._file.append(asdict(skip))
        self._shown += 1
        if self._shown <= SHOWN:
            log.warning(f"Skipped a sample: {skip.reason} ({skip.source})")
        if self._shown == SHOWN:
            log.warning(f"Further skipped samples are only listed in {self._file.path}")
