"""What can go wrong in a run and is the user's to mend; scripts print the text and leave with a non-zero code."""

from __future__ import annotations


class TrainingError(ValueError):
    """Training cannot go on: a loss that is not finite, nothing to learn from, too many broken samples."""


class CheckpointError(OSError):
    """A checkpoint could not be written or read. The last good one is as it was."""
