"""Clips inside WebDataset tar shards, by random access: `shards/000000.tar#ID` names one, local or below a URL.

A shard that `webvid.py extract --format shards` wrote has an index beside it (`000000.index.json`: where each frame
lies in the tar). Any other tar whose members are `ID.mp4`, or `ID.0000.png`, `ID.0001.png`, ... is looked through once
for each process. Members are never unpacked to a path of their own.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from prismatic.video.clip import Clip, MediaError
from prismatic.video.frame_folder import UNKNOWN_FPS, PictureClip, frame_times
from prismatic.video.images import IMAGE_EXTENSIONS, read_image
from prismatic.video.storage import open_bytes, read_bytes, size_of

DECODER = "shard"
MARK = ".tar#"
INDEX_SUFFIX = ".index.json"
MAX_MEMBER_BYTES = 1 << 30  # of one frame or video: more is damage, or a bomb
MANIFEST_MEMBER = "json"

Span = tuple[int, int]
"""(offset in the tar, bytes)."""


@dataclass(frozen=True)
class ShardEntry:
    """Where one clip lies. frames: of its pictures in order; or `video` with its extension. manifest: as in a folder's
    manifest.json, None when there is none.
    """

    frames: tuple[Span, ...] = ()
    video: Span | None = None
    extension: str = ""
    manifest: Mapping[str, Any] | None = field(default=None, hash=False)


def is_shard_path(path: object) -> bool:
    """Whether a path names a clip in a shard."""
    return isinstance(path, str | os.PathLike) and MARK in os.fspath(path)


def split_shard_path(path: str) -> tuple[str, str]:
    """("shards/000000.tar", "ID")."""
    tar, _, clip_id = path.partition(MARK)
    return tar + MARK[:-1], clip_id


def index_path(tar: str) -> str:
    """Where the index of a shard is, if it has one."""
    return tar.removesuffix(MARK[:-1]) + INDEX_SUFFIX


def find_in_shard(path: str) -> ShardEntry:
    """Where the clip of a shard path lies. Raises MediaError when the shard is missing or has no such clip."""
    tar, clip_id = split_shard_path(path)
    entries = read_index(tar)
    if clip_id not in entries:
        raise MediaError(path, DECODER, f"the shard has no clip '{clip_id}' ({len(entries)} others)")
    return entries[clip_id]


def open_shard(path: str) -> Clip | tuple[bytes, str]:
    """The clip of a shard path; for a video file in the shard its bytes and a name with its extension."""
    entry = find_in_shard(path)
    if entry.video is None:
        return ShardClip(path, entry)
    (data,) = read_spans(path, split_shard_path(path)[0], [entry.video])
    return data, f"x.{entry.extension}"


def read_index(tar: str) -> Mapping[str, ShardEntry]:
    """Id -> where the clip lies. Kept for each process until the shard's size changes."""
    try:
        return _index(tar, size_of(tar))
    except FileNotFoundError as error:
        raise MediaError(tar, DECODER, "no such shard") from error
    except OSError as error:
        raise MediaError(tar, DECODER, f"cannot be read ({error.strerror or error})") from error


@lru_cache(maxsize=256)
def _index(tar: str, size: int) -> Mapping[str, ShardEntry]:
    beside = index_path(tar)
    try:
        content = json.loads(read_bytes(beside))
    except (FileNotFoundError, MediaError):  # a URL without one is a MediaError
        return _scan(tar)
    except ValueError as error:
        raise MediaError(tar, DECODER, f"its index {beside} cannot be read ({error})") from error
    try:
        if content["bytes"] != size:
            raise MediaError(tar, DECODER, f"is not the shard of {beside}: {size} bytes, not {content['bytes']}")
        return {name: _entry(row) for name, row in content["clips"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(tar, DECODER, f"{beside} is no index of a shard ({type(error).__name__}: {error})") from error


def _entry(row: dict[str, Any]) -> ShardEntry:
    frames = tuple((int(offset), int(size)) for offset, size in row["frames"])
    return ShardEntry(frames, manifest={name: row[name] for name in ("indices", "num_frames", "fps")})


def _scan(tar: str) -> Mapping[str, ShardEntry]:
    """The index of a shard that has none, from its headers. A clip's key is its name up to the first dot."""
    found: dict[str, dict[str, Span]] = {}
    manifests: dict[str, Any] = {}
    try:
        with open_bytes(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                key = f"{folder}/{key}" if folder else key
                if not member.isfile():
                    continue
                found.setdefault(key, {})[extension.lower()] = (member.offset_data, member.size)
                if extension == MANIFEST_MEMBER and member.size < 1 << 20:
                    manifests[key] = _manifest(archive, member)
    except tarfile.TarError as error:
        raise MediaError(tar, DECODER, f"is no tar file, or cut short ({error})") from error
    return {key: _scanned(members, manifests.get(key)) for key, members in found.items()}


def _manifest(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    """The JSON beside a clip, if it tells frames; captions and the like are other people's business."""
    file = archive.extractfile(member)
    try:
        content = json.loads(file.read()) if file is not None else None
    except ValueError:
        return None
    return content if isinstance(content, dict) and "indices" in content else None


def _scanned(members: dict[str, Span], manifest: Any) -> ShardEntry:
    pictures = [name for name in members if f".{name.rpartition('.')[2]}" in IMAGE_EXTENSIONS]
    if pictures:
        pictures.sort(key=lambda name: (len(name), name))
        return ShardEntry(tuple(members[name] for name in pictures), manifest=manifest)
    from prismatic.video.decode import VIDEO_EXTENSIONS

    videos = sorted(name for name in members if f".{name}" in VIDEO_EXTENSIONS)
    return ShardEntry(video=members[videos[0]], extension=videos[0]) if videos else ShardEntry()


class ShardClip(PictureClip):
    """The frames of one clip of a shard, each read where it lies."""

    def __init__(self, path: str, entry: ShardEntry) -> None:
        if not entry.frames:
            raise MediaError(path, DECODER, "the shard holds neither frames nor a video of it")
        self._path, self._tar = path, split_shard_path(path)[0]
        self._spans = entry.frames
        timestamps, fps = np.arange(len(entry.frames), dtype=np.float64) / UNKNOWN_FPS, UNKNOWN_FPS
        if entry.manifest is not None:
            timestamps, fps = frame_times(entry.manifest, len(entry.frames), path)
        super().__init__(path, DECODER, timestamps=timestamps, fps=fps)

    def _pictures(self, indices: list[int]) -> Iterator[np.ndarray]:
        for data in read_spans(self._path, self._tar, [self._spans[index] for index in indices]):
            yield read_image(self._path, data)[0]


def read_spans(path: str, tar: str, spans: Iterable[Span]) -> Iterator[bytes]:
    """The bytes of members of a shard, which is opened once. Raises MediaError."""
    try:
        with open_bytes(tar) as file:
            for offset, size in spans:
                if not 0 <= size <= MAX_MEMBER_BYTES or offset < 0:
                    raise MediaError(path, DECODER, f"a member of {size} bytes at {offset} cannot be")
                file.seek(offset)
                data = file.read(size)
                if len(data) != size:
                    raise MediaError(path, DECODER, f"the shard is cut short: {len(data)} of {size} bytes at {offset}")
                yield data
    except OSError as error:
        raise MediaError(path, DECODER, f"cannot be read ({error.strerror or error})") from error
