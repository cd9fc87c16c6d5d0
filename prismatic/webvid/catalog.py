"""`webvid.py catalog`: videos and captions -> one Parquet row a video, with the facts of its container.

Owns the status of each row and the file. Captions and files find each other in `entries.py`; which files are sound is
asked of `prismatic.video`, which reads the container and decodes a single frame.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from prismatic.conf.webvid import CatalogConfig
from prismatic.webvid.captions import Columns, read_captions
from prismatic.webvid.engine import ENGINES, Workers, cut
from prismatic.webvid.entries import Entries, Entry
from prismatic.webvid.files import clear_dead, whole_file
from prismatic.webvid.probe import Facts, ProbeStore, probe_all
from prismatic.webvid.rows import matching_files
from prismatic.webvid.texts import Rows, Texts

OK = "ok"
MISSING = "missing"
NO_CAPTION = "no caption"
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("path", pyarrow.string()),  # relative to the folder of the videos; empty when the file is missing
        ("caption", pyarrow.string()),
        ("duration", pyarrow.float64()),  # seconds
        ("num_frames", pyarrow.int64()),
        ("fps", pyarrow.float64()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("status", pyarrow.string()),  # ok | missing | no caption | duplicate of ID | broken: REASON
    ]
)
_VIDEOS_KEY = b"prismatic.videos"
BROKEN_SHOWN = 10


ROWS_AT_A_TIME = 65536  # a row group of the file


def catalog(cfg: CatalogConfig) -> str:
    """Write cfg.output and return a summary. Raises ValueError for a folder or table that cannot be used."""
    cfg.validate()
    ENGINES.get(cfg.engine)
    if not cfg.videos.is_dir():
        raise ValueError(f"--videos {cfg.videos}: no such folder")
    workers = Workers(cfg.num_workers, cfg.timeout, cfg.address)
    with ProbeStore(cfg.output.with_name(cfg.output.name + ".probed.sqlite")) as store:
        entries = Entries(store.database, cfg.videos)
        if cfg.captions is None:
            entries.add_files()
        else:
            columns = Columns(cfg.id_column, cfg.path_column, cfg.caption_column)
            files = matching_files(str(cfg.captions), "--captions")
            entries.add_captions(row for file in files for row in read_captions(file, columns))
        if not len(entries):
            raise ValueError(f"--videos {cfg.videos}: no video and no caption found")
        opened, known = probe_all(cfg.videos, entries.paths(), entries.num_paths(), store, cfg.engine, workers)
        counts, broken = _write(cfg, entries, store)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    more = [f"  ... and {counts['broken'] - len(broken)} more"] if counts["broken"] > len(broken) else []
    head = f"{cfg.output}: {counts.total()} rows: {told}; {opened} files opened, {known} known from before"
    return "\n".join([head, *broken, *more])


class Statuses:
    """The status of each row in turn. A duplicate has the id or the file's content of an earlier row that is ok, and
    points to it.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("CREATE TEMP TABLE taken (name TEXT PRIMARY KEY, id TEXT) WITHOUT ROWID")

    def of(self, entry: Entry, facts: Facts | None) -> str:
        """See SCHEMA for what it may be."""
        if facts is None:
            return MISSING
        if facts.error:
            return f"broken: {facts.error}"
        if not entry.caption:
            return NO_CAPTION
        for name in (f"id {entry.id}", f"content {facts.fingerprint}"):
            row = self._database.execute("SELECT id FROM taken WHERE name = ?", (name,)).fetchone()
            if row:
                return f"duplicate of {row[0]}"
        names = [(f"id {entry.id}", entry.id), (f"content {facts.fingerprint}", entry.id)]
        self._database.executemany("INSERT INTO taken VALUES (?, ?)", names)
        return OK


def _write(cfg: CatalogConfig, entries: Entries, store: ProbeStore) -> tuple[Counter[str], list[str]]:
    """Write the catalog group by group; returns the number of rows of each kind and the first broken ones."""
    schema = with_videos_folder(SCHEMA, cfg.videos, cfg.output.parent)
    statuses = Statuses(store.database)
    counts: Counter[str] = Counter()
    broken: list[str] = []
    clear_dead(cfg.output)
    with whole_file(cfg.output, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for group in cut(entries, ROWS_AT_A_TIME):
            rows: list[dict[str, Any]] = []
            for entry in group:
                facts = store.get(entry.path) if entry.path else None
                status = statuses.of(entry, facts)
                shown = facts.as_columns() if facts is not None and not facts.error else {}
                rows.append({"id": entry.id, "path": entry.path, "caption": entry.caption, "status": status, **shown})
                counts[status.split(":")[0].split(" of ")[0]] += 1
                if status.startswith("broken") and len(broken) < BROKEN_SHOWN:
                    broken.append(f"  {entry.path or entry.id}: {status}")
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    return counts, broken


def with_videos_folder(schema: pyarrow.Schema, videos: Path, folder: Path) -> pyarrow.Schema:
    """The schema of a catalog in `folder` that says where its videos are: relative to it, so that both can move."""
    relative = Path(os.path.relpath(videos.resolve(), folder.resolve())).as_posix()
    return schema.with_metadata({_VIDEOS_KEY: relative.encode()})


def usable_rows(path: Path) -> Iterator[Entry]:
    """Rows whose status is ok, in order, group by group from the disk. Raises ValueError when `path` is no catalog."""
    try:
        with pyarrow.parquet.ParquetFile(_existing(path)) as file:
            for group in file.iter_batches(ROWS_AT_A_TIME, columns=["id", "path", "caption", "status"]):
                for row in group.to_pylist():
                    if row["status"] == OK:
                        yield Entry(row["id"], row["path"], row["caption"])
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise ValueError(f"--catalog {path}: not a catalog of `webvid.py catalog` ({error})") from error


def count_usable(path: Path) -> int:
    """How many rows `usable_rows` gives."""
    try:
        statuses = pyarrow.parquet.read_table(_existing(path), columns=["status"])["status"]
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise ValueError(f"--catalog {path}: not a catalog of `webvid.py catalog` ({error})") from error
    return int(pyarrow.compute.sum(pyarrow.compute.equal(statuses, OK)).as_py() or 0)


def videos_folder(path: Path) -> Path:
    """The folder that the paths of a catalog are relative to. Raises ValueError when `path` is no catalog."""
    try:
        metadata = pyarrow.parquet.read_schema(_existing(path)).metadata or {}
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"--catalog {path}: not a catalog of `webvid.py catalog` ({error})") from error
    return path.parent / metadata.get(_VIDEOS_KEY, b".").decode()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"--catalog {path}: no such file; `webvid.py catalog --output {path}` makes one")
    return path


@dataclass(frozen=True)
class Catalog:
    """A catalog as read back. videos: the folder that paths are relative to. The columns hold one value a row."""

    videos: Path
    ids: Texts
    paths: Texts
    captions: Texts
    statuses: Texts

    @cached_property
    def ok(self) -> NDArray[np.bool_]:
        """Of each row, whether its status is ok, [N]."""
        return pyarrow.compute.equal(self.statuses.array, OK).to_numpy(zero_copy_only=False)

    def usable(self) -> Rows:
        """Numbers of the rows whose status is ok; no two of them have one id."""
        return np.flatnonzero(self.ok)

    def find(self, ids: Texts) -> Rows:
        """The row of each id, -1 where the catalog has no such id with status ok; int64 [len(ids)]."""
        rows = self.usable()
        known = self.ids if len(rows) == len(self.ids) else self.ids.take(rows)
        places = known.places(ids)
        return np.where(places < 0, -1, rows[places]) if len(rows) else places


def read_catalog(path: Path) -> Catalog:
    """Raises ValueError when `path` is no catalog."""
    try:
        table = pyarrow.parquet.read_table(_existing(path), columns=["id", "path", "caption", "status"])
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise ValueError(f"--catalog {path}: not a catalog of `webvid.py catalog` ({error})") from error
    if table.column_names != ["id", "path", "caption", "status"]:
        raise ValueError(f"--catalog {path}: it has no columns id, path, caption and status")
    videos = path.parent / (table.schema.metadata or {}).get(_VIDEOS_KEY, b".").decode()
    return Catalog(videos, Texts(table["id"]), Texts(table["path"]), Texts(table["caption"]), Texts(table["status"]))
