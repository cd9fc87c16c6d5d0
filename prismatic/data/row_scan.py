"""The rows of a large annotation file one after another, with their places in it, in little memory.

Owns the two plain forms: a JSON list of objects, and one object a line. What is neither, or broken, is left to the
reader of whole files (annotation_files.py), which says what is wrong.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

Place = tuple[int, int, dict[str, Any]]
"""Byte at which a row begins, how many bytes it has, and its value."""

_CHUNK = 1 << 22
_LONGEST_ROW = 1 << 26  # characters; what is longer is no row
_SPACE = re.compile(r"[ \t\n\r]*")


class NotPlainError(Exception):
    """A file that cannot be read row by row; never seen by the user."""


def scan_rows(path: Path) -> Iterator[Place]:
    """Every row of a file, in order. Raises NotPlainError, perhaps after some rows, and OSError."""
    with path.open("rb") as file:
        head = file.read(_CHUNK)
        start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        first = head[start:].lstrip(b" \t\n\r")[:1]
        file.seek(start)
        try:
            if first == b"[":
                yield from _ListReader(file, start).rows()
            elif first == b"{":
                yield from _lines(file, start, alone=path.suffix.lower() in (".jsonl", ".ndjson"))
            else:
                raise NotPlainError
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NotPlainError from error


def _lines(file: IO[bytes], at: int, alone: bool) -> Iterator[Place]:
    """alone: a single line may be a row; else it is a document of its own kind."""
    rows = 0
    for line in file:
        if not line.isspace():
            value = json.loads(line.decode("utf-8"))
            if not isinstance(value, dict):
                raise NotPlainError
            rows += 1
            yield at, len(line), value
        at += len(line)
    if rows == 0 or (rows == 1 and not alone):
        raise NotPlainError


class _ListReader:
    """The elements of a JSON list, through a window of the file that moves on."""

    def __init__(self, file: IO[bytes], at: int) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")()
        self._text, self._place, self._byte = "", 0, at
        self._ascii = self._ended = False

    def rows(self) -> Iterator[Place]:
        decode = json.JSONDecoder().raw_decode
        self._expect("[")
        while True:
            self._skip_space()
            while True:
                try:
                    value, end = decode(self._text, self._place)
                    break
                except json.JSONDecodeError:
                    # Perhaps it is only cut off by the end of the window.
                    if self._ended or len(self._text) - self._place > _LONGEST_ROW:
                        raise
                    self._read_on()
            if not isinstance(value, dict):
                raise NotPlainError
            start = self._byte
            self._move_to(end)
            yield start, self._byte - start, value
            if self._expect(",]") == "]":
                break
        self._skip_space()
        if self._place < len(self._text):
            raise NotPlainError

    def _expect(self, characters: str) -> str:
        self._skip_space()
        found = self._text[self._place : self._place + 1]
        if not found or found not in characters:
            raise NotPlainError
        self._move_to(self._place + 1)
        return found

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._text, self._place)
            assert match is not None
            self._move_to(match.end())
            if self._place < len(self._text) or self._ended:
                return
            self._read_on()

    def _move_to(self, place: int) -> None:
        passed = place - self._place
        self._byte += passed if self._ascii else len(self._text[self._place : place].encode("utf-8"))
        self._place = place

    def _read_on(self) -> None:
        data = self._file.read(_CHUNK)
        self._ended = not data
        self._text = self._text[self._place :] + self._decoder.decode(data, final=self._ended)
        self._place, self._ascii = 0, self._text.isascii()
