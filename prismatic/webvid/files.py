"""Files that the tools hand to each other: written whole or not at all, read with clear errors."""

from __future__ import annotations

import glob
import itertools
import json
import os
import platform
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jsonlines


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write that appears under its name only when all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_dead(path: Path) -> None:
    """Delete what killed processes of this machine have left of `path`; others may be writing it right now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(platform.node())}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not _is_alive(int(pid)):
            left.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


ENCODE = json.JSONEncoder(ensure_ascii=False).encode
"""A value as JSON in one line; captions stay readable."""


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as a JSON list, one row a line, or as JSON lines by the suffix .jsonl; returns their number."""
    lines = path.suffix == ".jsonl"
    count = 0
    clear_dead(path)
    with whole_file(path) as file:
        for row in rows:
            text = ENCODE(row)
            file.write(f"{text}\n" if lines else ("[\n" if count == 0 else ",\n") + text)
            count += 1
        if not lines:
            file.write("[]\n" if count == 0 else "\n]\n")
    return count


def read_rows(path: Path, flag: str) -> list[dict[str, Any]]:
    """Rows of a JSON list or a JSON-lines file. Raises ValueError naming file, line and `flag`."""
    if path.suffix == ".jsonl":
        return list(iter_lines(path, flag))
    text = read_text(path, flag)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} {path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{flag} {path}: expected a list of JSON objects")
    return rows


def iter_lines(path: Path, flag: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one at a time. Raises ValueError naming file, line and `flag`."""
    if not path.is_file():
        raise ValueError(f"{flag} {path}: no such file")
    try:
        # newline: a caption may hold what Python otherwise takes for the end of a line.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield from jsonlines.Reader(file).iter(type=dict, skip_empty=True)
    except jsonlines.InvalidLineError as error:
        what = f"not JSON ({error.__cause__})" if error.__cause__ else "expected a JSON object"
        raise ValueError(f"{flag} {path}, line {error.lineno}: {what}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path}: not UTF-8 text ({error})") from error


def iter_rows(path: Path, flag: str) -> Iterator[dict[str, Any]]:
    """What `read_rows` gives, one at a time where the file allows it: JSON lines, or a list with one row a line, as
    `write_rows` writes it. Any other list is read whole."""
    if path.suffix == ".jsonl":
        yield from iter_lines(path, flag)
        return
    done, comma = 0, True
    if path.is_file():
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            plain = file.readline().strip() == "["
            for line in file if plain else ():
                text = line.strip()
                if text == "]" and (not comma or not done) and not file.read().strip():
                    return
                if not comma:
                    break
                try:
                    row = json.loads(text.removesuffix(","))
                except json.JSONDecodeError:
                    break
                if not isinstance(row, dict) or "\N{REPLACEMENT CHARACTER}" in text:
                    break
                yield row
                done, comma = done + 1, text.endswith(",")
    # Not one row a line from here on, or not valid: the whole of it is read, and what is wrong is said.
    yield from itertools.islice(read_rows(path, flag), done, None)


def read_text(path: Path, flag: str) -> str:
    """The text of a UTF-8 file. Raises ValueError naming `flag` when there is none."""
    if not path.is_file():
        raise ValueError(f"{flag} {path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path}: not UTF-8 text ({error})") from error


def open_database(file: Path, table: str, remedy: str) -> sqlite3.Connection:
    """A SQLite file with a table ("NAME (COLUMNS) WITHOUT ROWID"), made where there is none; it survives a kill at any
    moment. Raises ValueError, which says to delete a file that is none, and what that costs (`remedy`).
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        database = sqlite3.connect(file)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{file} cannot be used ({error}); delete it {remedy}") from error
    return database


def epoch_path(output: Path, epoch: int, epochs: int) -> Path:
    """`output` itself for a single epoch, otherwise output_epoch0.json, output_epoch1.json, ..."""
    return output if epochs == 1 else output.with_name(f"{output.stem}_epoch{epoch}{output.suffix}")
