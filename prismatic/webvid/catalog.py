"""`webvid.py catalog`: videos and captions -> one Parquet row a video, with the facts of its container.

Owns how captions and files find each other, and the status of each row. Which files are sound is asked of
`prismatic.video`, which reads the container and decodes nothing.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from prismatic.conf.webvid import CatalogConfig
from prismatic.video.decode import is_video
from prismatic.webvid.captions import Caption, Columns, read_captions
from prismatic.webvid.files import whole_file
from prismatic.webvid.probe import Facts, probe_all

log = logging.getLogger(__name__)

OK = "ok"
MISSING = "missing"
NO_CAPTION = "no caption"
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("path", pyarrow.string()),  # relative to the folder of the videos; empty when the file is missing
        ("caption", pyarrow.string()),
        ("duration", pyarrow.float64()),  # seconds
        ("num_frames", pyarrow.int64()),
        ("fps", pyarrow.float64()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("status", pyarrow.string()),  # ok | missing | no caption | duplicate of ID | broken: REASON
    ]
)
_VIDEOS_KEY = b"prismatic.videos"


@dataclass(frozen=True)
class Entry:
    """A row before its file is opened. path: relative, with forward slashes; empty when there is no such file."""

    id: str
    path: str
    caption: str


def catalog(cfg: CatalogConfig) -> str:
    """Write cfg.output and return a summary. Raises ValueError for a folder or table that cannot be used."""
    cfg.validate()
    if not cfg.videos.is_dir():
        raise ValueError(f"--videos {cfg.videos}: no such folder")
    files = FileIndex(cfg.videos)
    if cfg.captions is None:
        entries = list(_with_caption_files(cfg.videos, files))
    else:
        columns = Columns(cfg.id_column, cfg.path_column, cfg.caption_column)
        entries = list(_match(read_captions(cfg.captions, columns), files))
    if not entries:
        raise ValueError(f"--videos {cfg.videos}: no video and no caption found")
    paths = [entry.path for entry in entries if entry.path]
    journal = cfg.output.with_name(cfg.output.name + ".probed.jsonl")
    facts, opened = probe_all(cfg.videos, paths, journal, cfg.num_workers)
    statuses = list(_statuses(entries, facts))
    _write(cfg, entries, facts, statuses)
    counts = Counter(status.split(":")[0].split(" of ")[0] for status in statuses)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    broken = [f"  {e.path or e.id}: {s}" for e, s in zip(entries, statuses, strict=True) if s.startswith("broken")]
    more = [f"  ... and {len(broken) - 10} more"] if len(broken) > 10 else []
    head = f"{cfg.output}: {len(entries)} rows: {told}; {opened} files opened, {len(facts) - opened} known from before"
    return "\n".join([head, *broken[:10], *more])


class FileIndex:
    """The video files below a folder, found by relative path, by page_dir/videoid, or by videoid."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: dict[str, None] = dict.fromkeys(sorted(_walk(root)))
        self._by_stem: dict[str, str] = {}
        for path in self.paths:
            place = PurePosixPath(path)
            self._by_stem.setdefault(place.stem, path)
            if len(place.parts) > 1:
                self._by_stem.setdefault(f"{place.parts[-2]}/{place.stem}", path)

    def find(self, caption: Caption) -> str:
        """Relative path of a caption's file, or "" when there is none."""
        if caption.file:
            file = Path(os.path.normpath(caption.file))
            if file.is_absolute() and file.is_relative_to(self.root.resolve()):
                file = file.relative_to(self.root.resolve())
            return file.as_posix() if file.as_posix() in self.paths else ""
        return self._by_stem.get(caption.stem, "")


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        # A folder named like a video is listed, so that the catalog says what is wrong with it.
        named = [name for name in folders if is_video(name)]
        folders[:] = sorted(set(folders) - set(named))
        for name in [*files, *named]:
            if is_video(name) and not name.startswith("."):
                yield (relative / name).as_posix()


def _match(captions: list[Caption], files: FileIndex) -> Iterator[Entry]:
    """Captions in their order, then the files that no caption names."""
    used: set[str] = set()
    ids: set[str] = set()
    for caption in captions:
        path = files.find(caption)
        used.add(path)
        ids.add(caption.id)
        yield Entry(caption.id, path, caption.text)
    yield from (Entry(_free_id(path, ids), path, "") for path in files.paths if path not in used)


def _with_caption_files(root: Path, files: FileIndex) -> Iterator[Entry]:
    """Every file, with the text of the .txt file beside it."""
    ids: set[str] = set()
    for path in files.paths:
        beside = (root / path).with_suffix(".txt")
        text = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
        yield Entry(_free_id(path, ids), path, " ".join(text.split()))


def _free_id(path: str, ids: set[str]) -> str:
    """The file's name as its id, with its folders where another row has that name; the id is then taken."""
    place = PurePosixPath(path)
    found = next((i for i in (place.stem, place.with_suffix("").as_posix()) if i not in ids), path)
    ids.add(found)
    return found


def _statuses(entries: list[Entry], facts: dict[str, Facts]) -> Iterator[str]:
    """A duplicate has the id or the file's content of an earlier row that is ok, and points to it."""
    ids: dict[str, None] = {}
    contents: dict[str, str] = {}
    for entry in entries:
        known = facts.get(entry.path)
        if known is None:
            yield MISSING
        elif known.error:
            yield f"broken: {known.error}"
        elif not entry.caption:
            yield NO_CAPTION
        elif entry.id in ids:
            yield f"duplicate of {entry.id}"
        elif known.fingerprint in contents:
            yield f"duplicate of {contents[known.fingerprint]}"
        else:
            ids[entry.id] = None
            contents[known.fingerprint] = entry.id
            yield OK


def _write(cfg: CatalogConfig, entries: list[Entry], facts: dict[str, Facts], statuses: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    for entry, status in zip(entries, statuses, strict=True):
        known = facts.get(entry.path)
        shown = known.as_columns() if known is not None and not known.error else {}
        rows.append({"id": entry.id, "path": entry.path, "caption": entry.caption, "status": status, **shown})
    # Relative to the catalog: both can move together.
    videos = Path(os.path.relpath(cfg.videos.resolve(), cfg.output.parent.resolve())).as_posix()
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA.with_metadata({_VIDEOS_KEY: videos.encode()}))
    with whole_file(cfg.output, "wb") as file:
        pyarrow.parquet.write_table(table, file)


@dataclass(frozen=True)
class Catalog:
    """A catalog as read back. videos: the folder that paths are relative to. The lists hold one value a row."""

    videos: Path
    ids: list[str]
    paths: list[str]
    captions: list[str]
    statuses: list[str]

    def usable(self) -> dict[str, int]:
        """id -> row, of the rows whose status is ok, in the order of the catalog."""
        return {self.ids[i]: i for i, status in enumerate(self.statuses) if status == OK}


def read_catalog(path: Path) -> Catalog:
    """Raises ValueError when `path` is no catalog."""
    if not path.is_file():
        raise ValueError(f"--catalog {path}: no such file; `webvid.py catalog --output {path}` makes one")
    try:
        table = pyarrow.parquet.read_table(path, columns=["id", "path", "caption", "status"])
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise ValueError(f"--catalog {path}: not a catalog of `webvid.py catalog` ({error})") from error
    if table.column_names != ["id", "path", "caption", "status"]:
        raise ValueError(f"--catalog {path}: it has no columns id, path, caption and status")
    videos = path.parent / (table.schema.metadata or {}).get(_VIDEOS_KEY, b".").decode()
    columns = {name: ["" if v is None else v for v in table[name].to_pylist()] for name in table.column_names}
    return Catalog(videos, columns["id"], columns["path"], columns["caption"], columns["status"])
