"""Clusters files, [{"video_id", "caption", "cluster"}], read into columns; ten million rows in seconds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.json

from prismatic.webvid.files import iter_rows
from prismatic.webvid.texts import Rows, Texts

BLOCK = 1 << 25  # bytes parsed at a time
SCHEMA = pyarrow.schema([("video_id", pyarrow.string()), ("cluster", pyarrow.string())])


class Grouped:
    """Videos that lie cluster after cluster. ends: where each cluster ends among them [G]."""

    ends: Rows

    @property
    def sizes(self) -> Rows:
        """Videos of each cluster, int64 [G]."""
        return np.diff(self.ends, prepend=0)

    def span(self, cluster: int) -> slice:
        """Where the videos of a cluster stand."""
        return slice(int(self.ends[cluster - 1]) if cluster else 0, int(self.ends[cluster]))


@dataclass(frozen=True)
class ClustersFile(Grouped):
    """names: of the clusters in the order in which the file first names them [G]. ids: of their videos, cluster after
    cluster, each in the order of the file [n]. ends: where each cluster ends in `ids` [G].
    """

    names: Texts
    ids: Texts
    ends: Rows


def read_clusters_file(path: Path, flag: str = "--clusters") -> ClustersFile:
    """Raises ValueError naming `flag`, file and row for a row without video_id or cluster, or an empty file."""
    table = _parsed(path) or _row_by_row(path, flag)
    if not len(table):
        raise ValueError(f"{flag} {path} is empty")
    clusters = pyarrow.compute.dictionary_encode(table["cluster"].combine_chunks())
    numbers = clusters.indices.to_numpy()
    ids, order = Texts(table["video_id"]), np.argsort(numbers, kind="stable")
    # Files of `webvid.py cluster` hold one cluster after the other already.
    ids = ids if (order == np.arange(len(order))).all() else ids.take(order)
    return ClustersFile(Texts(clusters.dictionary), ids, np.cumsum(np.bincount(numbers)))


def _parsed(path: Path) -> pyarrow.Table | None:
    """Both columns of a file with one row a line, as `write_rows` writes it; None for any other, valid or not."""
    if not path.is_file():
        return None
    options = pyarrow.json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore")
    try:
        tables, commas = [], 0
        for block, ended in _blocks(path):
            commas += ended
            reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
            tables.append(pyarrow.json.read_json(io.BytesIO(block), reading, options))
        table = pyarrow.concat_tables(tables)
        table.validate(full=True)
    except pyarrow.ArrowInvalid:
        return None
    if path.suffix != ".jsonl" and commas != len(table) - 1:
        return None
    return None if any(column.null_count for column in table.columns) else table


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """(whole lines of JSON objects, number of commas behind them). A line end within a string is escaped, so every one
    is between rows. Raises ArrowInvalid for a list that does not begin and end as `write_rows` does it.
    """
    with path.open("rb") as file:
        is_list = path.suffix != ".jsonl"
        if is_list and file.readline().strip() != b"[":
            raise pyarrow.ArrowInvalid("not a list with one row a line")
        while block := file.read(BLOCK):
            block += file.readline()
            commas = block.count(b"},\n") if is_list else 0
            if is_list:
                block = block.replace(b"},\n", b"}\n")
                if file.peek(1) == b"":
                    if not block.rstrip().endswith(b"\n]") and block.rstrip() != b"]":
                        raise pyarrow.ArrowInvalid("cut short, or not one row a line")
                    block = block.rstrip().removesuffix(b"]")
            if block.strip():
                yield block, commas


def _row_by_row(path: Path, flag: str) -> pyarrow.Table:
    columns: tuple[list[str], list[str]] = ([], [])
    for number, row in enumerate(iter_rows(path, flag), start=1):
        if "video_id" not in row or "cluster" not in row:
            raise ValueError(f"{flag} {path}: row {number} lacks video_id or cluster")
        columns[0].append(str(row["video_id"]))
        columns[1].append(str(row["cluster"]))
    return pyarrow.table([pyarrow.array(column, pyarrow.string()) for column in columns], schema=SCHEMA)
