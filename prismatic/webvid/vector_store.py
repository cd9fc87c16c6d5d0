"""Vectors by id in a SQLite file: what a killed run, or one on a smaller catalog, has computed already."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from prismatic.webvid.files import open_database
from prismatic.webvid.pool import Failure


class VectorStore:
    """Use as a context manager. A vector counts as long as its key (the file's size and time, ...) is the same."""

    def __init__(self, file: Path) -> None:
        table = "vectors (id TEXT PRIMARY KEY, key TEXT, vector BLOB, error TEXT) WITHOUT ROWID"
        self._database = open_database(file, table, "to compute all vectors anew")

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def is_empty(self) -> bool:
        """Whether nothing is known yet."""
        return self._database.execute("SELECT 1 FROM vectors LIMIT 1").fetchone() is None

    def get(self, clip_id: str) -> tuple[str, np.ndarray | Failure] | None:
        """(key, vector float16 [D] or why there is none), or None."""
        row = self._database.execute("SELECT key, vector, error FROM vectors WHERE id = ?", (clip_id,)).fetchone()
        if row is None:
            return None
        return row[0], np.frombuffer(row[1], np.float16) if row[1] is not None else Failure(row[2])

    def put(self, rows: Iterable[tuple[str, str, np.ndarray | Failure]]) -> None:
        """Write down (id, key, outcome), all or nothing."""
        with self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)",
                (
                    (i, key, None, found.reason) if isinstance(found, Failure) else (i, key, found.tobytes(), None)
                    for i, key, found in rows
                ),
            )
