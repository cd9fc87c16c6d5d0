"""Caption tables as (id, file, caption): WebVid's CSV, or CSV, JSON, JSONL, Parquet with named columns."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prismatic.webvid.files import iter_lines, iter_rows

ID_COLUMNS = ("videoid", "video_id", "id")
PATH_COLUMNS = ("path", "video", "file", "filename", "file_name", "video_path")
CAPTION_COLUMNS = ("name", "caption", "text", "description")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None: the first known name that the table has."""

    id: str | None = None
    path: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Caption:
    """A row of the table. `file` is where the table says the video is, `stem` where WebVid's layout puts it
    (page_dir/videoid, without extension); either may be empty.
    """

    id: str
    file: str
    stem: str
    text: str


def read_captions(path: Path, columns: Columns) -> Iterator[Caption]:
    """The rows of the table in its order, read as they are asked for; a .json without one row a line is read whole.

    Raises ValueError naming the file, the line and the flag to use.
    """
    rows = table_rows(path)
    first = next(rows, None)
    if first is None:
        return
    have = list(first)
    id_column = _pick(have, columns.id, ID_COLUMNS, "--id_column", path)
    path_column = _pick(have, columns.path, PATH_COLUMNS, "--path_column", path)
    caption_column = _pick(have, columns.caption, CAPTION_COLUMNS, "--caption_column", path)
    if id_column is None and path_column is None:
        raise ValueError(
            f"--captions {path}: none of the columns {have} is known to hold an id or a file; name it with --id_column "
            "or --path_column"
        )
    if caption_column is None:
        raise ValueError(
            f"--captions {path}: none of the columns {have} is known to hold captions; name it with --caption_column"
        )
    for number, row in enumerate(chain([first], rows), start=1):
        file = _text(row, path_column)
        video_id = _text(row, id_column) or Path(file).stem
        if not video_id:
            raise ValueError(f"--captions {path}: row {number} has neither an id nor a file")
        page = _text(row, "page_dir")
        stem = f"{page}/{video_id}" if page else video_id
        yield Caption(one_line(video_id), file, stem, one_line(_text(row, caption_column)))


def one_line(text: str) -> str:
    """Every run of white space as one blank: ids and captions stand in lists with one a line. Halves of a character,
    which JSON can hold and UTF-8 cannot, become question marks.
    """
    return " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")


def table_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a table of any kind as objects, as they are asked for. Raises ValueError naming file and line."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"--captions {path}: no such file")
    if suffix == ".json":
        return iter_rows(path, "--captions")
    if suffix == ".jsonl":
        return iter_lines(path, "--captions")
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, "\t" if suffix == ".tsv" else ",")
    raise ValueError(f"--captions {path}: expected .csv, .tsv, .json, .jsonl or .parquet")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in file.iter_batches():
                yield from group.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"--captions {path}: not a Parquet file ({error})") from error


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            for row in reader:
                if None in row or None in row.values():
                    expected = len(reader.fieldnames or [])
                    raise ValueError(
                        f"--captions {path}, line {reader.line_num}: {expected} columns expected; a caption with a "
                        "comma needs quotes around it"
                    )
                yield row
        except csv.Error as error:
            raise ValueError(f"--captions {path}, line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"--captions {path}: not UTF-8 text ({error})") from error


def _pick(have: list[str], asked: str | None, known: Sequence[str], flag: str, path: Path) -> str | None:
    if asked is not None:
        if asked not in have:
            raise ValueError(f"{flag}: {path} has no column '{asked}'; it has {', '.join(have)}")
        return asked
    return next((name for name in known if name in have), None)


def _text(row: Mapping[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return "" if value is None else str(value).strip()
