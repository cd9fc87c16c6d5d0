"""The duration column of a catalog, which only timestamps need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray


def read_durations(path: Path) -> NDArray[np.float32]:
    """Seconds of each row of a catalog [N]; NaN where the file could not be opened, or the catalog does not say."""
    if "duration" not in pyarrow.parquet.read_schema(path).names:
        return np.full(pyarrow.parquet.read_metadata(path).num_rows, np.nan, np.float32)
    column = pyarrow.parquet.read_table(path, columns=["duration"])["duration"]
    return column.to_numpy().astype(np.float32)  # null becomes NaN
