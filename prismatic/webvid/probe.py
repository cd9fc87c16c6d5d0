"""Facts of video files from their containers, kept in a database so that a second run opens only what is new."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prismatic.data.media_paths import MediaRoot
from prismatic.video.decode import MediaError, open_video
from prismatic.webvid.confined import video_path
from prismatic.webvid.engine import ENGINES, Workers, cut
from prismatic.webvid.files import open_database
from prismatic.webvid.pool import Failure

HASHED_BYTES = 1 << 16  # of each end of the file; with its size they tell two files apart
BATCH = 128  # files between two commits: no more work than this for each machine is lost by a kill


@dataclass(frozen=True)
class Facts:
    """What is known of one file. size, mtime_ns: of the file when it was opened. error: why it cannot be used, or "".
    fingerprint: equal for files of equal size and ends. duration: seconds.
    """

    size: int
    mtime_ns: int
    fingerprint: str = ""
    duration: float = 0.0
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    error: str = ""

    def as_columns(self) -> dict[str, Any]:
        """The catalog's columns."""
        return {name: getattr(self, name) for name in ("duration", "num_frames", "fps", "width", "height")}


NAMES = tuple(field.name for field in fields(Facts))


@dataclass(frozen=True)
class Probing:
    """The job of opening files below `root`, for an engine."""

    root: str

    @cached_property
    def _root(self) -> MediaRoot:
        return MediaRoot(self.root)

    def read(self, relative: str) -> Facts:
        """Open one file; it gives no Failure of its own, what is wrong with the file is in Facts.error."""
        return probe(self._root, relative)

    def finish(self, batch: Sequence[str], read: Iterator[Facts | Failure]) -> list[Facts]:
        """Facts of each; of a file that a process hung or died on, too."""
        return [
            _failed(Path(self.root) / p, f) if isinstance(f, Failure) else f for p, f in zip(batch, read, strict=True)
        ]


def probe(root: MediaRoot, relative: str) -> Facts:
    """Open one file, whatever it is: everything that can be wrong with it ends up in `error`."""
    path = Path(root.root, relative)
    try:
        stat = path.stat()
    except OSError as error:
        return Facts(-1, 0, error=error.strerror or str(error))
    try:
        video_path(root, relative)
    except ValueError as error:
        return Facts(stat.st_size, stat.st_mtime_ns, error=str(error))
    try:
        fingerprint = "" if path.is_dir() else _fingerprint(path, stat.st_size)
        with open_video(path) as clip:
            return Facts(
                stat.st_size, stat.st_mtime_ns, fingerprint,
                clip.duration, len(clip), clip.fps, clip.width, clip.height,
            )  # fmt: skip
    except MediaError as error:
        return Facts(stat.st_size, stat.st_mtime_ns, error=error.reason)
    except OSError as error:
        return Facts(stat.st_size, stat.st_mtime_ns, error=error.strerror or str(error))


def _failed(path: Path, failure: Failure) -> Facts:
    try:
        stat = path.stat()
    except OSError:
        return Facts(-1, 0, error=failure.reason)
    return Facts(stat.st_size, stat.st_mtime_ns, error=failure.reason)


class ProbeStore:
    """What earlier runs know of files, in a SQLite file: a table `probed`, one row a path. Use as a context manager."""

    def __init__(self, file: Path) -> None:
        self.database = open_database(
            file,
            "probed (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, fingerprint TEXT, duration REAL, "
            "num_frames INTEGER, fps REAL, width INTEGER, height INTEGER, error TEXT) WITHOUT ROWID",
            "to open all videos anew",
        )

    def __enter__(self) -> ProbeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def get(self, path: str) -> Facts | None:
        """What is known of a path, whether or not the file has changed since."""
        row = self.database.execute(f"SELECT {', '.join(NAMES)} FROM probed WHERE path = ?", (path,)).fetchone()
        return Facts(*row) if row else None

    def put(self, found: Iterable[tuple[str, Facts]]) -> None:
        """Write down, all or nothing."""
        marks = ", ".join("?" * (len(NAMES) + 1))
        with self.database:
            self.database.executemany(
                f"INSERT OR REPLACE INTO probed (path, {', '.join(NAMES)}) VALUES ({marks})",
                ((path, *astuple(facts)) for path, facts in found),
            )


def probe_all(
    root: Path, paths: Iterable[str], total: int, store: ProbeStore, engine: str, workers: Workers
) -> tuple[int, int]:
    """Open the files that the store does not know as they are now. Returns (files opened, files known from before).

    paths: relative, each once; `total` of them.
    """
    known = 0
    job = Probing(str(root))
    with tqdm(total=total, unit="file", desc="catalog") as bar:

        def unknown() -> Iterator[str]:
            nonlocal known
            for path in paths:
                if _unchanged(root / path, store.get(path)):
                    known += 1
                    bar.update()
                else:
                    yield path

        opened = 0
        for batch, found in ENGINES.get(engine)(job, cut(unknown(), BATCH), workers):
            store.put(zip(batch, found, strict=True))
            opened += len(batch)
            bar.update(len(batch))
    return opened, known


def _fingerprint(path: Path, size: int) -> str:
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(HASHED_BYTES))
        if size > HASHED_BYTES:
            file.seek(-min(size - HASHED_BYTES, HASHED_BYTES), os.SEEK_END)
            digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()


def _unchanged(path: Path, facts: Facts | None) -> bool:
    if facts is None:
        return False
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (facts.size, facts.mtime_ns)
