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
from pathlib import Path

import torch

from prismatic.data.annotation_files import AnnotationError, read_rows
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def load_records(files: Path | str | Sequence[Path | str], media_root: Path | str, *, seed: int = 0) -> RecordTable:
    """All rows of one annotation file, or of several after each other.

    files: `.json` (a list, or lines), `.jsonl`, a `.yaml` mixture with sampling, or `dataset_info.json#NAME`; every
    schema of `schemas.py`, mixed freely. media_root: the folder that media paths are relative to; none may leave it.
    seed: draws the `random:N` shares of mixtures. Whether the media exist is not looked at (see `check_media`).

    Raises AnnotationError (a ValueError) that names the file, and the row counted from 1.
    """
    root = MediaRoot(media_root)
    paths = [files] if isinstance(files, str | os.PathLike) else files
    with _without_collector():
        table = RecordTable(parse_row(row, root) for path in paths for row in read_rows(Path(path), seed))
    if not len(table):
        raise AnnotationError(f"{', '.join(map(str, paths))}: no row is left")
    log.info("%d rows from %s", len(table), ", ".join(map(str, paths)))
    return table


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
