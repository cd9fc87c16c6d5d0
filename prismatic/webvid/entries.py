"""Rows of a catalog before their files are opened: captions and files find each other. In a database on the disk.

Ten million names and captions as Python objects take 15 GB; here a table holds them, and memory does not grow.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from prismatic.video.decode import is_video
from prismatic.webvid.captions import Caption, one_line

log = logging.getLogger(__name__)

CHUNK = 4096  # rows handed to the database at a time


@dataclass(frozen=True)
class Entry:
    """A row before its file is opened. path: relative, with forward slashes; empty when there is no such file."""

    id: str
    path: str
    caption: str


class Entries:
    """The files below a folder, and the rows that captions and files make together; gone when closed.

    database: open for writing; the tables are temporary, in a file that SQLite deletes.
    """

    def __init__(self, database: sqlite3.Connection, root: Path) -> None:
        self.root, self._real = root, root.resolve()
        self._database = database
        database.execute("PRAGMA temp_store = FILE")
        database.executescript(
            "CREATE TEMP TABLE files (path TEXT PRIMARY KEY, stem TEXT, parent_stem TEXT, used INTEGER) WITHOUT ROWID;"
            "CREATE TEMP TABLE entries (place INTEGER PRIMARY KEY, id TEXT, path TEXT, caption TEXT);"
            "CREATE TEMP TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID;"
        )
        self._insert("INSERT INTO files VALUES (?, ?, ?, 0)", map(_named, _walk(root)))
        database.execute("CREATE INDEX temp.by_stem ON files (stem)")
        database.execute("CREATE INDEX temp.by_parent_stem ON files (parent_stem)")

    def add_captions(self, captions: Iterable[Caption]) -> None:
        """Rows for captions in their order, then for the files that no caption names."""

        def rows() -> Iterator[tuple[str, str, str]]:
            for caption in captions:
                path = self._find(caption)
                if path:
                    self._database.execute("UPDATE files SET used = 1 WHERE path = ?", (path,))
                self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (caption.id,))
                yield caption.id, path, caption.text

        self._add(rows())
        self._add((self._free_id(path), path, "") for path in self._unused())

    def add_files(self) -> None:
        """A row for every file, with the text of the .txt file beside it."""

        def rows() -> Iterator[tuple[str, str, str]]:
            for path in self._unused():
                beside = (self.root / path).with_suffix(".txt")
                text = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
                yield self._free_id(path), path, one_line(text)

        self._add(rows())

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM entries").fetchone()[0])

    def __iter__(self) -> Iterator[Entry]:
        for row in self._database.execute("SELECT id, path, caption FROM entries ORDER BY place"):
            yield Entry(*row)

    def paths(self) -> Iterator[str]:
        """Paths of the rows that have one, each once, in order."""
        return (row[0] for row in self._database.execute("SELECT path FROM files ORDER BY path"))

    def num_paths(self) -> int:
        """How many `paths` gives."""
        return int(self._database.execute("SELECT COUNT(*) FROM files").fetchone()[0])

    def _find(self, caption: Caption) -> str:
        """Relative path of a caption's file, or "" when there is none."""
        if caption.file:
            file = Path(os.path.normpath(caption.file))
            if file.is_absolute() and file.is_relative_to(self._real):
                file = file.relative_to(self._real)
            return self._one("SELECT path FROM files WHERE path = ?", file.as_posix())
        parts = PurePosixPath(caption.stem).parts
        if len(parts) > 1:
            found = self._database.execute(
                "SELECT path FROM files WHERE parent_stem = ? ORDER BY path", ("/".join(parts[-2:]),)
            )
            for (path,) in found:
                if PurePosixPath(path).with_suffix("").parts[-len(parts) :] == parts:
                    return str(path)
            # Moved out of the folders that the table tells of: then no other may bear its name.
            return self._one("SELECT MIN(path) FROM files WHERE stem = ? HAVING COUNT(*) = 1", parts[-1])
        # The first in order of the files that bear the name.
        return self._one("SELECT MIN(path) FROM files WHERE stem = ?", caption.stem)

    def _free_id(self, path: str) -> str:
        """The file's name as its id, with its folders where another row has that name; the id is then taken."""
        place = PurePosixPath(path)
        for name in (one_line(place.stem), one_line(place.with_suffix("").as_posix())):
            if self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (name,)).rowcount:
                return name
        return one_line(path)

    def _unused(self) -> Iterator[str]:
        return (row[0] for row in self._database.execute("SELECT path FROM files WHERE used = 0 ORDER BY path"))

    def _add(self, rows: Iterable[tuple[str, str, str]]) -> None:
        self._insert("INSERT INTO entries (id, path, caption) VALUES (?, ?, ?)", rows)

    def _insert(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        source = iter(rows)
        while chunk := list(islice(source, CHUNK)):
            self._database.executemany(statement, chunk)

    def _one(self, statement: str, value: str) -> str:
        row = self._database.execute(statement, (value,)).fetchone()
        return row[0] if row and row[0] else ""


def _named(path: str) -> tuple[str, str, str]:
    place = PurePosixPath(path)
    return path, place.stem, f"{place.parts[-2]}/{place.stem}" if len(place.parts) > 1 else ""


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        # A folder named like a video is listed, so that the catalog says what is wrong with it.
        named = [name for name in folders if is_video(name)]
        folders[:] = sorted(set(folders) - set(named))
        for name in [*files, *named]:
            if not is_video(name) or name.startswith("."):
                continue
            path = (relative / name).as_posix()
            if path.isprintable() or path.encode("utf-8", "replace").decode() == path:
                yield path
            else:
                log.warning("%r is left out: its name is not UTF-8 text; rename it", path)
