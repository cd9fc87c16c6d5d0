"""Annotation files to raw rows: JSON, JSON lines, YAML mixtures (LLaVA-NeXT), dataset_info.json (LLaMA-Factory).

Owns files and their sampling; what a row means is the business of `schemas.py`.
"""

from __future__ import annotations

import json
import math
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COMPONENTS = '--dataset.finetune_stage_components \'["annotations.json", "media_folder"]\''


class AnnotationError(ValueError):
    """An annotation file or one of its rows cannot be used. The text names the file, and the row when there is one."""


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in its file, and the column and tag names of a dataset_info.json.

    source: file and row, counted from 1, for error texts. number: its place in the file, from 0.
    """

    value: Any
    source: str
    number: int
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """How a dataset_info.json calls columns and tags of its file."""

    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class WholeFile(Sequence[RawRow]):
    """The rows of a file that was read into memory."""

    def __init__(self, values: list[Any], path: Path, names: Names) -> None:
        self._values, self._path, self._names = values, path, names

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, at: int) -> RawRow:  # type: ignore[override]  # no slices: a Part says which rows are wanted
        return raw_row(self._values[at], self._path, at, self._names)


@dataclass(frozen=True)
class Part:
    """Rows of one file that are wanted, in this order. rows: all of the file's; chosen: their places."""

    rows: Sequence[RawRow]
    chosen: Sequence[int]


OpenLarge = Callable[[Path, Names], "Sequence[RawRow] | None"]
"""A file's rows, made when asked for; None for a file that is to be read whole."""


def raw_row(value: Any, path: Path, number: int, names: Names) -> RawRow:
    """Row `number` (from 0) of a file."""
    return RawRow(value, f"{path}, row {number + 1}", number, names.columns, names.tags)


def require_files(paths: Iterable[Path]) -> None:
    """Raises AnnotationError for the first that is not there; what is in the others is not looked at."""
    for path in paths:
        if path.is_dir():
            raise AnnotationError(f"annotation file {path} is a folder; pass {_COMPONENTS}")
        if not path.exists():
            raise AnnotationError(_missing(path))


def read_rows(path: Path, seed: int) -> Iterator[RawRow]:
    """All rows of an annotation file, in order; `seed` draws the `random:N` shares of a mixture.

    `dataset_info.json#NAME` is one entry of such a file. Raises AnnotationError.
    """
    for part in read_parts(path, seed):
        yield from (part.rows[at] for at in part.chosen)


def read_parts(
    path: Path, seed: int, open_large: OpenLarge = lambda path, names: None, names: Names | None = None
) -> list[Part]:
    """The rows of an annotation file as `read_rows` gives them, file by file. Raises AnnotationError.

    names: from the dataset_info.json that has led here.
    """
    name, _, entry = str(path).partition("#") if not path.exists() else (str(path), "", "")
    path, names = Path(name), names or Names()
    if path.suffix.lower() in (".yaml", ".yml"):
        parts = []
        for file, strategy in _mixture(path):
            found = read_parts(file, seed, open_large, names)
            parts += _sampled(found, strategy, f"{seed}:{file.name}", path)
        return parts
    large = open_large(path, names)
    if large is not None:
        return [Part(large, range(len(large)))]
    content = _parse(path)
    if isinstance(content, dict) and _is_dataset_info(content):
        file, names = _entry(path, content, entry)
        return read_parts(file, seed, open_large, names)
    if not isinstance(content, list):
        raise AnnotationError(f"{path}: expected a list of rows, got {_kind(content)}")
    if not content:
        raise AnnotationError(f"{path}: the list of rows is empty")
    return [Part(WholeFile(content, path, names), range(len(content)))]


def _sampled(parts: list[Part], strategy: str, seed: str, path: Path) -> list[Part]:
    kept = sample_places(sum(len(part.chosen) for part in parts), strategy, seed, path)
    out, start = [], 0
    for part in parts:
        end = start + len(part.chosen)
        here = kept[bisect_left(kept, start) : bisect_left(kept, end)]
        if isinstance(here, range):
            chosen = part.chosen[here.start - start : here.stop - start] if here else ()
        else:
            chosen = [part.chosen[at - start] for at in here]
        out.append(Part(part.rows, chosen))
        start = end
    return out


def sample_places(total: int, strategy: str, seed: str, path: Path) -> range | list[int]:
    """The places below `total` that a mixture asks for: all, first:N[%], end:N[%], random:N[%]; in order.

    Raises AnnotationError when the strategy is not one of these.
    """
    if strategy == "all":
        return range(total)
    match = re.fullmatch(r"(first|end|random):(\d+(?:\.\d+)?)(%?)", strategy)
    if not match or (not match[3] and "." in match[2]):
        raise AnnotationError(
            f"{path}: sampling_strategy '{strategy}' is not one of all, first:N, end:N, random:N (N a count, or N% )"
        )
    count = math.ceil(total * float(match[2]) / 100) if match[3] else int(match[2])
    count = min(count, total)
    if match[1] == "first":
        return range(count)
    if match[1] == "end":
        return range(total - count, total)
    return sorted(random.Random(seed).sample(range(total), count))


def _missing(path: Path) -> str:
    return (
        f"annotation file {path} does not exist; pass {_COMPONENTS}, or make the files of a known dataset with "
        "`python scripts/preprocess.py --dataset_id ID`"
    )


def _read_text(path: Path) -> str:
    require_files([path])
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise AnnotationError(_missing(path)) from error
    except OSError as error:
        raise AnnotationError(f"annotation file {path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"annotation file {path} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise AnnotationError(f"annotation file {path} is empty")
    return text


def _is_lines(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _parse(path: Path) -> Any:
    """A JSON document, or the list of the lines' values; which of both is seen from the content where the name lies."""
    text = _read_text(path)
    if _is_lines(path) and not text.lstrip().startswith("["):
        return _parse_lines(path, text)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _parse_lines(path, text)
        raise AnnotationError(
            f"annotation file {path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error


def _parse_lines(path: Path, text: str) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise AnnotationError(
                f"annotation file {path} is not JSON lines: {error.msg} at line {number}, column {error.colno}"
            ) from error
    return values


def _mixture(path: Path) -> list[tuple[Path, str]]:
    """(file, sampling strategy) of each part of a YAML mixture; files are relative to the YAML's folder."""
    import yaml

    try:
        content = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise AnnotationError(f"mixture {path} is not YAML: {error}") from error
    parts = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not parts:
        raise AnnotationError(f"mixture {path}: expected `datasets:` with a list of entries, each with a json_path")
    out: list[tuple[Path, str]] = []
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict) or not isinstance(part.get("json_path"), str):
            raise AnnotationError(f"mixture {path}, entry {number}: expected a json_path, got {part!r}")
        strategy = str(part.get("sampling_strategy", "all"))
        out += [(path.parent / name, strategy) for name in _braces(part["json_path"])]
    return out


def _braces(pattern: str) -> list[str]:
    """`a{b,c}d` as the shell expands it: abd, acd."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for middle in match[1].split(",") for name in _braces(f"{before}{middle.strip()}{after}")]


def _is_dataset_info(content: dict[str, Any]) -> bool:
    return (
        bool(content)
        and all(isinstance(v, dict) for v in content.values())
        and any("file_name" in v for v in content.values())
    )


def _entry(path: Path, content: dict[str, Any], entry: str) -> tuple[Path, Names]:
    """The file of an entry of a dataset_info.json, and how its columns and tags are called."""
    names = [name for name, value in content.items() if "file_name" in value]
    if not entry and len(names) == 1:
        entry = names[0]
    if entry not in names:
        raise AnnotationError(
            f"{path} describes {len(names)} files ({', '.join(names[:8])}); choose one as {path}#{names[0]}"
        )
    info = content[entry]
    if info.get("formatting", "sharegpt") != "sharegpt":
        raise AnnotationError(f"{path}, '{entry}': formatting '{info['formatting']}' is not read, only sharegpt")
    return path.parent / info["file_name"], Names(info.get("columns") or {}, info.get("tags") or {})


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), repr(value))
