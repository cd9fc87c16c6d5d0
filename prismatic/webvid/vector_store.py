"""Vectors by id in a SQLite file: what a killed run, or one on a smaller catalog, has computed already."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from prismatic.webvid.pool import Failure


class VectorStore:
    """Use as a context manager. A vector counts as long as its key (the file's size and time, ...) is the same."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(file)
            self._database.execute("PRAGMA journal_mode = WAL")  # survives a kill at any moment
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS vectors (id TEXT PRIMARY KEY, key TEXT, vector BLOB, error TEXT) "
                "WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{file} cannot be used ({error}); delete it to compute all vectors anew") from error

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

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
