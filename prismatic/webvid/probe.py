"""Facts of video files from their containers, kept in a journal so that a second run opens only what is new."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prismatic.video.decode import MediaError, open_video

log = logging.getLogger(__name__)

HASHED_BYTES = 1 << 16  # of each end of the file; with its size they tell two files apart
WRITE_EVERY = 64  # files between two writes of the journal: no more work than this is lost by a kill


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


def probe(root: Path, relative: str) -> Facts:
    """Open one file, whatever it is: everything that can be wrong with it ends up in `error`."""
    path = root / relative
    try:
        stat = path.stat()
    except OSError as error:
        return Facts(-1, 0, error=error.strerror or str(error))
    # Training refuses such a path: rows are other people's data, and may point anywhere.
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return Facts(stat.st_size, stat.st_mtime_ns, error="a link that leaves the folder of the videos")
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


def probe_all(root: Path, paths: Sequence[str], journal: Path, num_workers: int) -> tuple[dict[str, Facts], int]:
    """({relative path: facts}, how many files were opened now). Files whose size and time the journal knows are not."""
    known = _read_journal(journal)
    wanted = list(dict.fromkeys(paths))
    facts = {path: known[path] for path in wanted if path in known and _unchanged(root / path, known[path])}
    todo = [path for path in wanted if path not in facts]
    if not todo:
        return facts, 0
    journal.parent.mkdir(parents=True, exist_ok=True)
    cut_off = journal.is_file() and journal.read_bytes()[-1:] not in (b"", b"\n")
    with journal.open("a", encoding="utf-8") as file, tqdm(total=len(todo), unit="file", desc="catalog") as bar:
        file.write("\n" if cut_off else "")
        for batch in _probed(root, todo, num_workers):
            file.writelines(json.dumps({"path": path, **asdict(found)}) + "\n" for path, found in batch)
            file.flush()
            facts.update(batch)
            bar.update(len(batch))
    return facts, len(todo)


def _probed(root: Path, todo: Sequence[str], num_workers: int) -> Iterator[list[tuple[str, Facts]]]:
    with ThreadPoolExecutor(num_workers, thread_name_prefix="probe") as pool:
        try:
            for start in range(0, len(todo), WRITE_EVERY):
                batch = todo[start : start + WRITE_EVERY]
                yield list(zip(batch, pool.map(lambda path: probe(root, path), batch), strict=True))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _fingerprint(path: Path, size: int) -> str:
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(HASHED_BYTES))
        if size > HASHED_BYTES:
            file.seek(-min(size - HASHED_BYTES, HASHED_BYTES), os.SEEK_END)
            digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()


def _unchanged(path: Path, facts: Facts) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (facts.size, facts.mtime_ns)


def _read_journal(journal: Path) -> dict[str, Facts]:
    """Later lines win. Lines that cannot be read (the run was killed while writing one) are left out."""
    known: dict[str, Facts] = {}
    if journal.is_file():
        for number, line in enumerate(journal.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if not line:
                continue
            try:
                row = json.loads(line)
                path = row.pop("path")
                known[path] = Facts(**row)
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                log.warning("%s, line %d cannot be read; that file is opened again", journal, number)
    return known
