"""Typed question files, read into columns: which video of the catalog each entry is about, its type, its text."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray
from tqdm import tqdm

from prismatic.webvid.captions import one_line
from prismatic.webvid.catalog import Catalog
from prismatic.webvid.files import iter_rows, read_text
from prismatic.webvid.texts import Rows, Texts

UNKNOWN_VIDEO = "about a video that the catalog cannot use"
INCOMPLETE = "without a question or an answer"
NAMES = 3  # that a file's path may hold of its video
_TYPE = re.compile(r"video_questions_([A-Za-z]+)")
# An entry as Python prints it, a dictionary without dictionaries inside. JSON has no single quotes there.
_PRINTED = re.compile(r"""\{(?='[a-z_])(?:[^{}'"]|'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")*+\}""", re.DOTALL)


@dataclass(frozen=True)
class Questions:
    """Entries that can be used, in the order of the files [n]. rows: of their videos in the catalog. kinds: of each,
    a number in `names`, which are in order of the alphabet. skipped: reason -> number of the others.
    """

    rows: Rows
    kinds: NDArray[np.int64]
    names: list[str]
    questions: Texts
    answers: Texts
    skipped: Counter[str]


def read_questions(files: list[Path], found: Catalog, types: tuple[str, ...]) -> Questions:
    """The entries of all files, or those of some types. Raises ValueError naming the file that cannot be read."""
    skipped: Counter[str] = Counter()
    parts = [_read(file, found, types, skipped) for file in tqdm(files, unit="file", desc="qna")]
    kinds = pyarrow.chunked_array([kinds for _, kinds, _, _ in parts]).dictionary_encode().combine_chunks()
    names = kinds.dictionary.to_pylist()
    order = np.argsort(np.array(names)) if names else np.zeros(0, np.int64)
    texts = [Texts(pyarrow.chunked_array([part[i].array for part in parts])) for i in (2, 3)]
    return Questions(
        np.concatenate([rows for rows, _, _, _ in parts]),
        np.argsort(order)[kinds.indices.to_numpy()],
        [names[i] for i in order.tolist()],
        *texts,
        skipped,
    )


def _read(
    file: Path, found: Catalog, types: tuple[str, ...], skipped: Counter[str]
) -> tuple[Rows, pyarrow.Array, Texts, Texts]:
    match = _TYPE.search(file.stem)
    *names, kinds, questions, answers = Texts.columns(_entries(file, match[1] if match else file.stem), NAMES + 3)
    rows = np.full(len(kinds), -1, np.int64)
    for column in names:  # the first that the catalog knows
        rows = np.where(rows < 0, found.find(column), rows)
    full = np.ones(len(kinds), bool)
    for text in (questions, answers):
        full &= pyarrow.compute.not_equal(text.array, "").to_numpy(zero_copy_only=False)
    skipped[UNKNOWN_VIDEO] += int((rows < 0).sum())
    skipped[INCOMPLETE] += int(((rows >= 0) & ~full).sum())
    wanted = (rows >= 0) & full
    if types:
        listed = pyarrow.compute.is_in(kinds.array, pyarrow.array(types, pyarrow.large_string()))
        wanted &= listed.to_numpy(zero_copy_only=False)
    kept = np.flatnonzero(wanted)
    return rows[kept], kinds.take(kept).array, questions.take(kept), answers.take(kept)


def _entries(file: Path, kind: str) -> Iterator[tuple[str, ...]]:
    """(NAMES that may be the video's id, type, question, answer) of each entry."""
    for row in _rows(file):
        question, answer = (one_line(str(row.get(name) or "")) for name in ("question", "answer"))
        yield *_names(row), str(row.get("type") or kind), question, answer


def _names(row: dict[str, Any]) -> tuple[str, str, str]:
    """By video_id, or by the file: ID.mp4, or the frames ID/0000.png. No video has the id ""."""
    if "video_id" in row:
        return one_line(str(row["video_id"])), "", ""
    paths = row.get("file_paths")
    first = paths[0] if isinstance(paths, list) and paths else paths
    if not isinstance(first, str):
        return "", "", ""
    path = PurePosixPath(first)
    return path.stem, path.parent.name, path.name


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """JSON, JSON lines, or a list as Python prints it (read as data, never run)."""
    if path.suffix in (".json", ".jsonl"):
        yield from iter_rows(path, "--questions")
        return
    text = read_text(path, "--questions")
    done = yield from _printed(text)
    if done is not None:
        yield from islice(_whole(text, path), done, None)


def _printed(text: str) -> Generator[dict[str, Any], None, int | None]:
    """The entries of a list as Python prints it, one at a time: all at once they take many times the file's size.

    Returns None at the end of the list, or the number of entries before what is not printed so.
    """
    done = place = 0
    for match in _PRINTED.finditer(text):
        if text[place : match.start()].strip() != ("," if done else "["):
            return done
        try:
            row = ast.literal_eval(match[0])
        except (ValueError, SyntaxError):
            return done
        yield row
        done, place = done + 1, match.end()
    return None if done and text[place:].strip() == "]" else done


def _whole(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        try:
            rows = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"--questions {path}: neither JSON nor a list as Python writes it ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"--questions {path}: expected a list of objects")
    return rows
