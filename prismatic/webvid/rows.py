"""What the tools that rewrite annotation rows share: which videos a row shows, and its first question."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismatic.prompting import PLACEHOLDERS

_PLACEHOLDER = re.compile("|".join(re.escape(mark) for mark in PLACEHOLDERS))


def ids_of(row_id: str) -> list[str]:
    """Ids of the videos of a row: woven rows join theirs by commas (the older tool left one at the end)."""
    return [part for part in (piece.strip() for piece in row_id.split(",")) if part]


def matching_files(pattern: str, flag: str) -> list[Path]:
    """The files of a path or a pattern, in order. Raises ValueError naming `flag` when there is none."""
    found = (
        [Path(pattern)] if Path(pattern).is_file() else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
    )
    files = [path for path in found if path.is_file()]
    if not files:
        raise ValueError(f"{flag} {pattern}: no such file")
    return files


def turns_of(row: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The turns {from, value} of a row. Raises ValueError naming `where` when it has none."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) and "value" in t for t in turns):
        raise ValueError(f"{where}: expected `conversations` with turns of `from` and `value`")
    return turns


def split_question(text: str) -> tuple[str, str]:
    """(question alone, the same text with {} in its place): what stands around placeholders is kept."""
    question = _PLACEHOLDER.sub("", text).strip()
    start = text.find(question) if question else -1
    if start < 0:  # the question goes around a placeholder: they are put in front
        return " ".join(question.split()), "".join(f"{mark}\n" for mark in _PLACEHOLDER.findall(text)) + "{}"
    before, after = text[:start], text[start + len(question) :]
    escape = str.maketrans({"{": "{{", "}": "}}"})
    return question, before.translate(escape) + "{}" + after.translate(escape)


def share(part: int, whole: int) -> str:
    """ "30,634 of 45,912 (66.7 %)"."""
    return f"{part:,} of {whole:,} ({100 * part / whole:.1f} %)" if whole else "0 of 0"


def listed(names: Sequence[str], shown: int = 5) -> str:
    """The first few names."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
