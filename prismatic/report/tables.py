"""What the page of a run tells in tables: validation, reasons of skipping, spikes, the card."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismatic.report.history import History

REASONS, EXAMPLES, SPIKES, ANSWERS = 12, 3, 8, 4  # shown
_MASKED = re.compile(r"'[^']*'|\"[^\"]*\"|(?:[\w.\-]*/)+[\w.\-+]*|\d+(?:\.\d+)?")


@dataclass
class Reason:
    """Samples that were skipped for a like reason. text: the reason without names and numbers."""

    text: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class SkipReasons:
    """Counts the rows of a skipped.jsonl by reason; a second look reads only what has come since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def read(self) -> list[Reason]:
        """The reasons so far, the commonest first."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._read:  # a resumed run has cut the file
            self._forget()
        if size > self._read:
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    try:
                        self._add(json.loads(line))
                    except ValueError:
                        continue  # the half row of a kill, with another one behind it
        return sorted(self._reasons.values(), key=lambda reason: -reason.count)

    def _forget(self) -> None:
        self._read = 0
        self._reasons: dict[str, Reason] = {}

    def _add(self, row: Mapping[str, Any]) -> None:
        text = " ".join(_MASKED.sub("...", str(row.get("reason", ""))).split())
        reason = self._reasons.setdefault(text, Reason(text))
        reason.count += 1
        if len(reason.examples) < EXAMPLES:
            reason.examples.append(str(row.get("id", "")))


@dataclass(frozen=True)
class Measured:
    """A validation figure: what of, its newest value and its best one."""

    name: str
    last: float
    best: float
    lower_is_better: bool


def validation_rows(history: History) -> list[Measured]:
    """Every validation loss and every score of an evaluation during training, in the order in which they came."""
    rows = []
    parts = validation_parts(history).values()
    for name, curve in history.curves.items():
        loss = name == "Validation Loss" or name in parts
        if curve.last is None or curve.best is None or not (loss or name.startswith("Evaluation ")):
            continue
        best = curve.best if loss else max(curve.highs)
        rows.append(Measured(name.removeprefix("Evaluation "), curve.last, best, loss))
    return rows


def validation_parts(history: History) -> dict[str, str]:
    """Names of the losses by data, and by number of clips where a dataset has several, by what they are called."""
    prefix = "Validation Loss ("
    parts = [name.removeprefix(prefix).rstrip(")") for name in history.curves if name.startswith(prefix)]
    clips = Counter(part.partition(", L=")[0] for part in parts if ", L=" in part)
    shown = [part for part in parts if ", L=" not in part or clips[part.partition(", L=")[0]] > 1]
    return {part: f"{prefix}{part})" for part in shown} if len(shown) > 1 else {}


def newest_rows(path: Path, count: int) -> tuple[list[dict[str, Any]], int]:
    """(the last `count` rows of a JSON-lines file, number of all its rows); ([], 0) where there is no file."""
    if not path.is_file():
        return [], 0
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    rows = []
    for line in lines[-count:]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the half row of a kill
    return rows, len(lines)


def card_rows(card: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(name, text) of the newest entry of reproducibility.json, what a reader asks for first."""
    if not card or not card.get("starts"):
        return []
    start = card["starts"][-1]
    git, versions = start.get("git") or {}, start.get("versions") or {}
    commit = git.get("commit")
    files = [f for data in start.get("data", {}).values() for f in data.get("files", [])]
    names = ("python", "torch", "transformers", "cuda", "driver")
    rows = [
        ("started", f"{start.get('started')} at step {start.get('from_step')}"),
        ("starts", str(len(card["starts"]))),
        ("command", shlex.join(start.get("command", []))),
        ("commit", f"{commit}{' with changes' if git.get('dirty') else ''}" if commit else "not a git checkout"),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))),
        ("device", f"{start.get('world_size')} x {start.get('device')}"),
        ("data", ", ".join(f"{Path(f['path']).name} {f.get('sha256', f.get('problem', ''))[:12]}" for f in files)),
        ("template", str(start.get("template_sha256"))[:12]),
        ("tokenizer", str(start.get("tokenizer_sha256"))[:12]),
    ]
    return [(name, text) for name, text in rows if text and text != "None"]
