"""Rows written to an annotation file and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prismatic.data.annotations import load_records
from prismatic.types import Record

CHAT = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
TEXT = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


def write(folder: Path, rows: Any, name: str = "rows.json") -> Path:
    """The rows as a file of JSON, or of JSON lines by the suffix."""
    path = folder / name
    lines = name.endswith(".jsonl")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


def one(root: Path, row: dict[str, Any], name: str = "rows.json") -> Record:
    """The record of a row, in a file beside the media folder."""
    (record,) = load_records(write(root.parent, [row], name), root)
    return record


def media(root: Path, row: dict[str, Any]) -> list[tuple[str, list[str], int | None]]:
    """(kind, paths below the media folder, frames) of a row's media."""
    return [(m.kind, [str(Path(p).relative_to(root)) for p in m.paths], m.num_frames) for m in one(root, row).media]
