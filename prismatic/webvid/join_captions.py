"""`webvid.py captions`: captions from elsewhere put into a catalog, a clusters file or woven rows, by id.

Rows go through one after the other, or a group at a time: what lies in memory are the new captions, as columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray
from tqdm import tqdm

from prismatic.conf.webvid_rows import CaptionsConfig
from prismatic.data.weave import Shown
from prismatic.webvid.catalog import NO_CAPTION, OK, ROWS_AT_A_TIME
from prismatic.webvid.files import clear_dead, iter_rows, whole_file, write_rows
from prismatic.webvid.forms import answered_by_all_captions, joined
from prismatic.webvid.new_captions import NewCaptions, read_new_captions
from prismatic.webvid.rows import ids_of, listed, share, turns_of
from prismatic.webvid.texts import Rows, Texts

LISTED = 5  # videos without a new caption that the summary names


def captions(cfg: CaptionsConfig) -> str:
    """Write cfg.output and return a summary with the coverage. Raises ValueError for input that cannot be used."""
    cfg.validate()
    new, files = read_new_captions(cfg)
    told = f"{len(new):,} captions from {files} file{'s' if files > 1 else ''}"
    return f"{told}\n{_catalog(cfg, new) if cfg.input.suffix == '.parquet' else _rows(cfg, new)}"


def _catalog(cfg: CaptionsConfig, new: NewCaptions) -> str:
    if not cfg.input.is_file():
        raise ValueError(f"--input {cfg.input}: no such file")
    try:
        with pyarrow.parquet.ParquetFile(cfg.input) as file:
            names = file.schema_arrow.names
            if not {"id", "caption"} <= set(names):
                raise ValueError(f"--input {cfg.input}: it has no columns id and caption")
            columns = file.read([name for name in ("id", "status") if name in names])
            ids = Texts(columns["id"])
            rows = new.rows_of(ids)
            status = Texts(columns["status"]) if "status" in names else None
            mended = _mended(ids, status, rows >= 0)
            _write(cfg, file, new, rows, mended)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"--input {cfg.input}: not a Parquet file ({error})") from error
    without = np.flatnonzero(rows < 0)
    kept = len(ids) if cfg.missing == "keep" else len(ids) - len(without)
    more = f"; {mended.sum():,} that had no caption are usable now" if mended.any() else ""
    return "\n".join(
        [
            f"{cfg.output}: {kept:,} rows; new captions for {share(len(ids) - len(without), len(ids))} videos{more}",
            *_without(list(ids.take(without[: LISTED + 1]))),
            *_unused(new, np.unique(rows[rows >= 0])),
        ]
    )


def _mended(ids: Texts, status: Texts | None, covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows lacked nothing but a caption and have one now; no two usable rows have one id. Bool [N]."""
    if status is None:
        return np.zeros(len(ids), bool)
    equal = pyarrow.compute.equal
    chosen = covered & equal(status.array, NO_CAPTION).to_numpy(zero_copy_only=False)
    usable = ids.take(np.flatnonzero(equal(status.array, OK).to_numpy(zero_copy_only=False)))
    waiting = np.flatnonzero(chosen)
    named = ids.take(waiting)
    fresh = (usable.places(named) < 0) & (named.places(named) == np.arange(len(named)))
    chosen[waiting[~fresh]] = False
    return chosen


def _write(
    cfg: CaptionsConfig, file: pyarrow.parquet.ParquetFile, new: NewCaptions, rows: Rows, mended: NDArray[np.bool_]
) -> None:
    """The catalog again, group by group, with other captions."""
    schema = _moved(file.schema_arrow, cfg)
    start = 0
    clear_dead(cfg.output)
    with whole_file(cfg.output, "wb") as out, pyarrow.parquet.ParquetWriter(out, schema) as writer:
        for group in file.iter_batches(ROWS_AT_A_TIME):
            table = pyarrow.Table.from_batches([group])
            found, usable = rows[start : start + len(table)], mended[start : start + len(table)]
            start += len(table)
            wanted = new.texts.array.take(pyarrow.array(found, pyarrow.int64(), mask=found < 0))
            table = _replaced(table, "caption", pyarrow.compute.coalesce(wanted, table["caption"].cast(wanted.type)))
            if usable.any():
                status = pyarrow.compute.if_else(pyarrow.array(usable), OK, table["status"])
                table = _replaced(table, "status", status)
            if cfg.missing == "drop":
                table = table.filter(pyarrow.array(found >= 0))
            writer.write_table(table.cast(schema))


def _replaced(table: pyarrow.Table, name: str, column: pyarrow.ChunkedArray) -> pyarrow.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(place), column.cast(table.schema.field(place).type))


def _moved(schema: pyarrow.Schema, cfg: CaptionsConfig) -> pyarrow.Schema:
    """The catalog names its folder of videos relative to itself: another place needs another name."""
    key, metadata = b"prismatic.videos", dict(schema.metadata or {})
    if key in metadata:
        videos = (cfg.input.parent / metadata[key].decode()).resolve()
        metadata[key] = Path(os.path.relpath(videos, cfg.output.parent.resolve())).as_posix().encode()
    return schema.with_metadata(metadata)


Replaced = dict[str, Any]
Replace = Callable[[dict[str, Any], Sequence[str]], Replaced]
"""(row, new captions of its videos) -> the row with them."""


def _rows(cfg: CaptionsConfig, new: NewCaptions) -> str:
    counts = {"new": 0, "partly": 0, "none": 0}
    seen: list[pyarrow.Array] = []
    written = write_rows(cfg.output, _changed(cfg, new, counts, seen))
    videos = Texts(pyarrow.chunked_array(seen, pyarrow.large_string()).unique())
    rows = new.rows_of(videos)
    without = np.flatnonzero(rows < 0)
    rest = "left as they were" if cfg.missing == "keep" else "left out"
    return "\n".join(
        [
            f"{cfg.output}: {written:,} rows; new captions for {share(len(videos) - len(without), len(videos))} videos",
            f"  rows: {counts['new']:,} with new captions; {rest}: {counts['partly']:,} of whose videos only some have "
            f"one, {counts['none']:,} without any",
            *_without(list(videos.take(without[: LISTED + 1]))),
            *_unused(new, rows[rows >= 0]),
        ]
    )


def _changed(
    cfg: CaptionsConfig, new: NewCaptions, counts: dict[str, int], seen: list[pyarrow.Array]
) -> Iterator[dict[str, Any]]:
    """The rows of --input with their new captions; `counts` and `seen` (the ids of their videos) are added to."""
    source = iter_rows(cfg.input, "--input")
    first = next(source, None)
    if first is None:
        return
    ids_in, replace = (_cluster_ids, _cluster_row) if "cluster" in first else (_woven_ids, _woven_row)
    numbered = enumerate(tqdm(chain([first], source), unit="row", desc="rows"), start=1)
    while group := list(islice(numbered, ROWS_AT_A_TIME)):
        named = [ids_in(row, f"--input {cfg.input}, row {number}") for number, row in group]
        ids = Texts.of(video_id for each in named for video_id in each)
        seen.append(ids.array.unique())
        found = new.rows_of(ids)
        texts = new.texts.array.take(pyarrow.array(found, pyarrow.int64(), mask=found < 0)).to_pylist()
        end = 0
        for (_, row), each in zip(group, named, strict=True):
            start, end = end, end + len(each)
            mine = texts[start:end]
            whole = None not in mine
            counts["new" if whole else "partly" if any(mine) else "none"] += 1
            if whole or cfg.missing == "keep":
                yield replace(row, mine) if whole else row


def _cluster_ids(row: dict[str, Any], where: str) -> list[str]:
    if "video_id" not in row:
        raise ValueError(f"{where}: it has no video_id")
    return [str(row["video_id"])]


def _cluster_row(row: dict[str, Any], texts: Sequence[str]) -> Replaced:
    return {**row, "caption": texts[0]}


def _woven_ids(row: dict[str, Any], where: str) -> list[str]:
    ids = ids_of(str(row.get("id", "")))
    turns = turns_of(row, where)
    if not ids or len(turns) != 2:
        raise ValueError(f"{where}: expected an id (of videos, joined by commas), one question and one answer")
    if not answered_by_all_captions(str(turns[0]["value"])):
        raise ValueError(
            f"{where}: its question is not answered by the captions of all its videos; put the new captions into the "
            "catalog (--input CATALOG) and run `webvid.py weave` again: the same --seed gives the same weave"
        )
    return ids


def _woven_row(row: dict[str, Any], texts: Sequence[str]) -> Replaced:
    question, answered = row["conversations"]
    _, answer = joined([Shown(text) for text in texts], "", np.random.default_rng(0))
    return {**row, "conversations": [question, {**answered, "value": answer}]}


def _without(ids: list[str]) -> list[str]:
    return [f"  without: {listed(ids, LISTED)}"] if ids else []


def _unused(new: NewCaptions, used: Rows) -> list[str]:
    """Captions of videos that --input does not hold. used: rows of `new`, each once."""
    if len(used) == len(new):
        return []
    rest = np.ones(len(new), bool)
    rest[used] = False
    first = list(new.ids.take(np.flatnonzero(rest)[: LISTED + 1]))
    return [f"  {len(new) - len(used):,} of the captions are of other videos: {listed(first, LISTED)}"]
