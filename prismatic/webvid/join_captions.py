"""`webvid.py captions`: captions from elsewhere put into a catalog, a clusters file or woven rows, by id."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from prismatic.conf.webvid_rows import CaptionsConfig
from prismatic.data.weave import Shown
from prismatic.webvid.files import clear_dead, read_rows, read_text, whole_file, write_rows
from prismatic.webvid.forms import joined
from prismatic.webvid.rows import ids_of, listed, matching_files, share, turns_of

ID_FIELDS = ("video_id", "videoid", "id")
CAPTION_FIELDS = ("cleaned_caption", "enriched_caption", "rewritten_caption", "caption", "name", "text")


def captions(cfg: CaptionsConfig) -> str:
    """Write cfg.output and return a summary with the coverage. Raises ValueError for input that cannot be used."""
    cfg.validate()
    table: dict[str, str] = {}
    files = matching_files(cfg.captions, "--captions")
    for file in tqdm(files, unit="file", desc="captions"):
        table.update(_read(file, cfg))
    if not table:
        raise ValueError(f"--captions {cfg.captions}: no caption found")
    told = f"{len(table):,} captions from {len(files)} files"
    if cfg.input.suffix == ".parquet":
        return f"{told}\n{_catalog(cfg, table)}"
    rows = read_rows(cfg.input, "--input")
    replace = _cluster_row if rows and "cluster" in rows[0] else _woven_row
    return f"{told}\n{_rows(cfg, rows, table, replace)}"


def _catalog(cfg: CaptionsConfig, table: Mapping[str, str]) -> str:
    if not cfg.input.is_file():
        raise ValueError(f"--input {cfg.input}: no such file")
    try:
        found = pyarrow.parquet.read_table(cfg.input)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"--input {cfg.input}: not a Parquet file ({error})") from error
    if not {"id", "caption"} <= set(found.column_names):
        raise ValueError(f"--input {cfg.input}: it has no columns id and caption")
    ids = [str(i) for i in found["id"].to_pylist()]
    covered = np.array([i in table for i in ids], dtype=bool)
    new = [table.get(i, old) for i, old in zip(ids, found["caption"].to_pylist(), strict=True)]
    place = found.column_names.index("caption")
    found = found.set_column(place, "caption", pyarrow.array(new, pyarrow.string()))
    # A video that had nothing but no caption has one now; every other status stays.
    mended = 0
    if "status" in found.column_names:
        old = found["status"].to_pylist()
        taken = {i for i, s in zip(ids, old, strict=True) if s == "ok"}
        status = [
            "ok" if s == "no caption" and c and i not in taken else s for i, s, c in zip(ids, old, covered, strict=True)
        ]
        mended = sum(a != b for a, b in zip(old, status, strict=True))
        column = pyarrow.array(status, pyarrow.string())
        found = found.set_column(found.column_names.index("status"), "status", column)
    if cfg.missing == "drop":
        found = found.filter(pyarrow.array(covered))
    clear_dead(cfg.output)
    with whole_file(cfg.output, "wb") as file:
        pyarrow.parquet.write_table(_moved(found, cfg), file)
    without = [i for i, has in zip(ids, covered, strict=True) if not has]
    return "\n".join(
        [
            f"{cfg.output}: {len(found):,} rows; new captions for {share(len(ids) - len(without), len(ids))} videos"
            + (f"; {mended} that had no caption are usable now" if mended else ""),
            *([f"  without ({cfg.missing}): {listed(without)}"] if without else []),
        ]
    )


def _moved(table: pyarrow.Table, cfg: CaptionsConfig) -> pyarrow.Table:
    """The catalog names its folder of videos relative to itself: another place needs another name."""
    key, metadata = b"prismatic.videos", dict(table.schema.metadata or {})
    if key in metadata:
        videos = (cfg.input.parent / metadata[key].decode()).resolve()
        metadata[key] = Path(os.path.relpath(videos, cfg.output.parent.resolve())).as_posix().encode()
    return table.replace_schema_metadata(metadata)


Replace = Callable[[dict[str, Any], Mapping[str, str], str], tuple[list[str], dict[str, Any] | None]]
"""(row, captions by id, where it stands) -> (its ids, the row with new captions; None unless all have one)."""


def _rows(cfg: CaptionsConfig, rows: list[dict[str, Any]], table: Mapping[str, str], replace: Replace) -> str:
    videos: dict[str, bool] = {}
    counts = {"new": 0, "partly": 0, "none": 0}

    def out() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(tqdm(rows, unit="row", desc="rows"), start=1):
            ids, changed = replace(row, table, f"--input {cfg.input}, row {number}")
            have = [i in table for i in ids]
            videos.update(zip(ids, have, strict=True))
            counts["new" if changed is not None else "partly" if any(have) else "none"] += 1
            if changed is not None or cfg.missing == "keep":
                yield row if changed is None else changed

    written = write_rows(cfg.output, out())
    without = [i for i, has in videos.items() if not has]
    rest = "left as they were" if cfg.missing == "keep" else "left out"
    lines = [
        f"{cfg.output}: {written:,} rows; new captions for {share(len(videos) - len(without), len(videos))} videos",
        f"  rows: {counts['new']:,} with new captions; {rest}: {counts['partly']:,} of whose videos only some have "
        f"one, {counts['none']:,} without any",
        *([f"  without: {listed(without)}"] if without else []),
    ]
    return "\n".join(lines)


def _cluster_row(row: dict[str, Any], table: Mapping[str, str], where: str) -> tuple[list[str], dict[str, Any] | None]:
    if "video_id" not in row:
        raise ValueError(f"{where}: it has no video_id")
    video_id = str(row["video_id"])
    return [video_id], {**row, "caption": table[video_id]} if video_id in table else None


def _woven_row(row: dict[str, Any], table: Mapping[str, str], where: str) -> tuple[list[str], dict[str, Any] | None]:
    ids = ids_of(str(row.get("id", "")))
    turns = turns_of(row, where)
    if not ids or len(turns) != 2:
        raise ValueError(f"{where}: expected an id (of videos, joined by commas), one question and one answer")
    if any(i not in table for i in ids):
        return ids, None
    _, answer = joined([Shown(table[i]) for i in ids], "", np.random.default_rng(0))
    return ids, {**row, "conversations": [turns[0], {**turns[1], "value": answer}]}


def _read(path: Path, cfg: CaptionsConfig) -> Iterator[tuple[str, str]]:
    """(id, caption) of every row of a file that has both."""
    for key, row in _table(path):
        if isinstance(row, str):  # {"id": "caption"}
            video_id, text = key, row
        else:
            video_id = _field(row, cfg.id_column, ID_FIELDS, "--id_column", path) or key
            text = _field(row, cfg.caption_column, CAPTION_FIELDS, "--caption_column", path)
        if not video_id:
            raise ValueError(f"--captions {path}: a row has no id (fields: {', '.join(row)}); name it with --id_column")
        if text and text.strip():
            yield video_id, " ".join(text.split())


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    """(key of a JSON object or "", row) of every row."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            yield from (("", row) for row in pyarrow.parquet.read_table(path).to_pylist())
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"--captions {path}: not a Parquet file ({error})") from error
    elif suffix in (".csv", ".tsv"):
        text = io.StringIO(read_text(path, "--captions"), newline="")
        yield from (("", row) for row in csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ","))
    elif suffix == ".json" and read_text(path, "--captions").lstrip().startswith("{"):
        try:
            content = json.loads(read_text(path, "--captions"))
        except json.JSONDecodeError as error:
            raise ValueError(f"--captions {path}: not JSON ({error})") from error
        for key, row in content.items():
            if not isinstance(row, dict | str):
                raise ValueError(f"--captions {path}, '{key}': expected a caption or an object, got {row!r:.60}")
            yield key, row
    else:
        yield from (("", row) for row in read_rows(path, "--captions"))


def _field(row: Mapping[str, Any], asked: str | None, known: tuple[str, ...], flag: str, path: Path) -> str:
    name = asked if asked is not None else next((n for n in known if n in row), None)
    if name is None or name not in row:
        if flag == "--id_column" and asked is None:
            return ""
        raise ValueError(f"{flag}: a row of {path} has no field '{name or known[0]}'; it has {', '.join(row)}")
    return "" if row[name] is None else str(row[name])
