"""Annotation files to checked Records: the one door through which training rows come in.

Files are read by `annotation_files.py`, rows understood by `schemas.py`, paths confined by `media_paths.py`.
"""

from __future__ import annotations

import gc
import logging
import marshal
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from prismatic.data.annotation_files import AnnotationError, Part, read_parts
from prismatic.data.file_records import FileRecords, FileRows, JoinedRecords, large_file
from prismatic.data.media_paths import MediaRoot
from prismatic.data.rows import RecordRows
from prismatic.data.schemas import parse_row
from prismatic.data.sizes import SizeTable
from prismatic.types import Medium, Record, Turn
from prismatic.video.clip import DecoderMissingError, MediaError
from prismatic.video.shards import find_in_shard, is_shard_path
from prismatic.video.storage import is_dir, size_of

__all__ = ["AnnotationError", "RecordTable", "check_media", "load_records"]

log = logging.getLogger(__name__)


class RecordTable(RecordRows):
    """Records as bytes in one shared block, made into objects when asked for.

    Millions of small objects would be copied into every worker process as soon as it reads them (their reference counts
    change); a tensor is shared with all of them, however they are started.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        block = bytearray()
        ends = [0]
        sizes = SizeTable()
        for record in records:
            sizes.add(record)
            media = tuple((medium.kind, medium.paths, medium.num_frames) for medium in record.media)
            turns = tuple((turn.role, turn.text) for turn in record.turns)
            block += marshal.dumps((record.id, media, turns, record.source))
            ends.append(len(block))
        self.sizes = sizes.done()
        self._ends = torch.tensor(ends, dtype=torch.int64)
        self._block = torch.frombuffer(block, dtype=torch.uint8) if block else torch.empty(0, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _record(self, at: int) -> Record:
        start, end = self._ends[at : at + 2].tolist()
        name, media, turns, source = marshal.loads(self._block[start:end].numpy().tobytes())
        return Record(name, tuple(Medium(*m) for m in media), tuple(Turn(*t) for t in turns), source)


def load_records(files: Path | str | Sequence[Path | str], media_root: Path | str, *, seed: int = 0) -> RecordRows:
    """All rows of one annotation file, or of several after each other.

    files: `.json` (a list, or lines), `.jsonl`, a `.yaml` mixture with sampling, or `dataset_info.json#NAME`; every
    schema of `schemas.py`, mixed freely. media_root: the folder that media paths are relative to; none may leave it.
    seed: draws the `random:N` shares of mixtures. Whether the media exist is not looked at (see `check_media`).

    The rows of a large file stay in it, and are read when they are asked for (row_index.py).

    Raises AnnotationError (a ValueError) that names the file, and the row counted from 1.
    """
    root = MediaRoot(media_root)
    paths = [files] if isinstance(files, str | os.PathLike) else files
    with _without_collector():
        parts = [part for path in paths for part in read_parts(Path(path), seed, partial(FileRows.open, root=root))]
        # What is in memory is one table, as long as nothing large stands between.
        groups = groupby(parts, lambda part: id(part) if large_file(part) else None)
        tables = [_records(list(group), root) for _, group in groups]
    if not sum(map(len, tables)):
        raise AnnotationError(f"{', '.join(map(str, paths))}: no row is left")
    records = tables[0] if len(tables) == 1 else JoinedRecords(tables)
    log.info("%d rows from %s", len(records), ", ".join(map(str, paths)))
    return records


def _records(parts: list[Part], root: MediaRoot) -> RecordRows:
    rows = large_file(parts[0])
    if rows is not None:
        return FileRecords(rows, parts[0].chosen, root)
    return RecordTable(parse_row(part.rows[at], root) for part in parts for at in part.chosen)


@contextmanager
def _without_collector() -> Iterator[None]:
    """No cyclic garbage collection inside: it would visit millions of parsed rows again and again, without a cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def check_media(records: Iterable[Record], *, open_files: bool = False, decoder: str = "pyav") -> list[str]:
    """Problems with the media of `records`, one text each ("file, row: reason"); empty when all is well.

    By default a file must exist and not be empty. open_files: also read the header of each picture and the index of
    each video, which finds what is cut short or no video at all, in milliseconds to seconds a file.
    """
    return [f"{record.source}: {reason}" for record in records for reason in _problems(record, open_files, decoder)]


def _problems(record: Record, open_files: bool, decoder: str) -> Iterator[str]:
    for medium in record.media:
        for path in medium.paths:
            try:
                if is_shard_path(path):
                    find_in_shard(path)
                elif not is_dir(path) and size_of(path) == 0:
                    yield f"{path}: the file is empty"
                    continue
                if open_files:
                    _open(medium, path, decoder)
            except FileNotFoundError:
                yield f"{path}: no such file"
            except OSError as error:
                yield f"{path}: {error.strerror}"
            except (MediaError, DecoderMissingError) as error:
                yield str(error)


def _open(medium: Medium, path: str, decoder: str) -> None:
    from prismatic.video.decode import open_video
    from prismatic.video.images import read_image

    if medium.kind == "video":
        with open_video(path, decoder) as clip:
            assert len(clip) > 0
    else:
        read_image(path)
