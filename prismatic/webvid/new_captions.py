"""Captions from elsewhere (cleaned, enriched, rewritten) as columns, found by the ids of their videos."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prismatic.conf.webvid_rows import CaptionsConfig
from prismatic.webvid.captions import one_line, table_rows
from prismatic.webvid.files import read_text
from prismatic.webvid.rows import matching_files
from prismatic.webvid.texts import Rows, Texts

ID_FIELDS = ("video_id", "videoid", "id")
CAPTION_FIELDS = ("cleaned_caption", "enriched_caption", "rewritten_caption", "caption", "name", "text")


class NewCaptions:
    """ids, texts: one row a video, in the order of the files. Of an id that comes twice the last caption counts."""

    def __init__(self, ids: Texts, texts: Texts) -> None:
        if ids.has_repeats():
            # `places` finds the first of two, so from behind the last one.
            backwards = np.arange(len(ids))[::-1]
            behind = ids.take(backwards)
            last = backwards[np.unique(behind.places(behind))][::-1]
            ids, texts = ids.take(last), texts.take(last)
        self.ids, self.texts = ids, texts

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: Texts) -> Rows:
        """The row of each id here, -1 where there is no caption for it; int64 [len(ids)]."""
        return self.ids.places(ids)


def read_new_captions(cfg: CaptionsConfig) -> tuple[NewCaptions, int]:
    """(the captions of all files of --captions, number of files). Raises ValueError naming file and flag."""
    files = matching_files(cfg.captions, "--captions")
    pairs = (pair for file in tqdm(files, unit="file", desc="captions") for pair in _read(file, cfg))
    found = NewCaptions(*Texts.columns(pairs, 2))
    if not len(found):
        raise ValueError(f"--captions {cfg.captions}: no caption found")
    return found, len(files)


def _read(path: Path, cfg: CaptionsConfig) -> Iterator[tuple[str, str]]:
    """(id, caption) of every row of a file that has both."""
    for key, row in _keyed_rows(path):
        if isinstance(row, str):  # {"id": "caption"}
            video_id, text = key, row
        else:
            video_id = _field(row, cfg.id_column, ID_FIELDS, "--id_column", path) or key
            text = _field(row, cfg.caption_column, CAPTION_FIELDS, "--caption_column", path)
        if not video_id.strip():
            raise ValueError(f"--captions {path}: a row has no id (fields: {', '.join(row)}); name it with --id_column")
        if text.strip():
            yield one_line(video_id), one_line(text)


def _keyed_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(key of a JSON object or "", row) of every row."""
    if path.suffix.lower() != ".json" or not _is_object(path):
        yield from (("", row) for row in table_rows(path))
        return
    try:
        content = json.loads(read_text(path, "--captions"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--captions {path}: not JSON ({error})") from error
    for key, row in content.items():
        if not isinstance(row, dict | str):
            raise ValueError(f"--captions {path}, '{key}': expected a caption or an object, got {row!r:.60}")
        yield key, row


def _is_object(path: Path) -> bool:
    """Whether a JSON file holds an object, not a list."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return next((line.lstrip()[0] for line in file if line.strip()), "") == "{"


def _field(row: Mapping[str, Any], asked: str | None, known: tuple[str, ...], flag: str, path: Path) -> str:
    name = asked if asked is not None else next((n for n in known if n in row), None)
    if name is None or name not in row:
        if flag == "--id_column" and asked is None:
            return ""
        raise ValueError(f"{flag}: a row of {path} has no field '{name or known[0]}'; it has {', '.join(row)}")
    return "" if row[name] is None else str(row[name])
