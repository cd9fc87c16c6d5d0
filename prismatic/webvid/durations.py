"""The duration column of a catalog, which only timestamps need."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet


def read_durations(path: Path) -> list[float | None]:
    """Seconds of each row of a catalog; None where the file could not be opened, or the catalog does not say."""
    if "duration" not in pyarrow.parquet.read_schema(path).names:
        return [None] * pyarrow.parquet.read_metadata(path).num_rows
    return pyarrow.parquet.read_table(path, columns=["duration"])["duration"].to_pylist()
