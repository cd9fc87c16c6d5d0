"""What a feature cache remembers of media, so that a hit reads neither the file nor its container.

Two kinds of notes, a small file each: the content (a SHA-256) behind a path with its sizes and times, and what a
decoder said of a content (frames, rate, timestamps). A note is a memory of something that can be worked out again: one
that is damaged, lost or of another state of the files is worked out again.

The policy on times: a path's content is believed unread only while size, modification time, change time and inode of
each of its files are the same. The change time cannot be set back by a program. A file that changed within the last
two seconds is read each time, because it may change again without its times showing it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.types import Medium
from prismatic.video.clip import MediaError
from prismatic.video.sampling import ClipFacts
from prismatic.video.shards import ShardEntry, find_in_shard, index_path, is_shard_path, read_spans, split_shard_path
from prismatic.video.storage import is_url

FRESH_SECONDS = 2.0
MAX_TIMESTAMPS = 1 << 16  # of a longer video (half an hour) the container is opened each time


def digest(*parts: object) -> str:
    """40 hexadecimal characters of the SHA-256 of some values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


@dataclass(frozen=True)
class Identity:
    """What a medium is at this moment. content: hash of its bytes. signature: of the sizes and times of its files."""

    content: str
    signature: str


class Notes:
    """Small JSON values by name, below `folder`; safe to write from many processes. A note that cannot be written is
    not written: the folder may be read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Any:
        """The value kept under a name; None without one, or when it is damaged."""
        try:
            checksum, _, text = self._path(name).read_bytes().partition(b"\n")
            return json.loads(text) if checksum == f"{zlib.crc32(text):08x}".encode() else None
        except (OSError, ValueError):
            return None

    def put(self, name: str, value: Any) -> None:
        """Keep a value under a name, in the place of an earlier one."""
        path = self._path(name)
        partial = path.with_name(f".{name}.{os.uname().nodename}-{os.getpid()}")
        text = json.dumps(value).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(f"{zlib.crc32(text):08x}\n".encode() + text)
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / name[:3] / name


def identify(medium: Medium, notes: Notes) -> Identity:
    """Content of a medium: remembered while nothing about its files has changed, otherwise read.

    Raises OSError or MediaError when a file is missing or cannot be read, ValueError for a URL.
    """
    name = digest("content", medium.kind, medium.paths)
    signature, changed = _signature(medium)
    known = notes.get(name)
    if isinstance(known, dict) and known.get("signature") == signature and isinstance(known.get("content"), str):
        return Identity(known["content"], signature)
    content = _content(medium)
    if time.time() - changed > FRESH_SECONDS and is_as_before(medium, signature):
        notes.put(name, {"signature": signature, "content": content})
    return Identity(content, signature)


def is_as_before(medium: Medium, signature: str) -> bool:
    """Whether the files are still those that were identified."""
    try:
        return _signature(medium)[0] == signature
    except OSError:
        return False


def remembered_facts(content: str, decoder: str, notes: Notes) -> ClipFacts | None:
    """What a decoder said of a video with this content; None when nothing is remembered."""
    known = notes.get(digest("facts", content, decoder))
    try:
        keys = known["keyframes"]
        return ClipFacts(
            int(known["num_frames"]),
            float(known["fps"]),
            np.frombuffer(base64.b64decode(known["timestamps"]), np.float64),
            None if keys is None else np.asarray(keys, np.int64),
        )
    except (TypeError, KeyError, ValueError):
        return None


def remember_facts(content: str, decoder: str, facts: ClipFacts, notes: Notes) -> None:
    """Keep what a decoder said of a content."""
    if facts.timestamps is not None and facts.num_frames <= MAX_TIMESTAMPS:
        times = base64.b64encode(np.ascontiguousarray(facts.timestamps, np.float64).tobytes()).decode()
        keys = None if facts.keyframes is None else facts.keyframes.tolist()
        value = {"num_frames": facts.num_frames, "fps": facts.fps, "timestamps": times, "keyframes": keys}
        notes.put(digest("facts", content, decoder), value)


def _files(medium: Medium) -> Iterator[str]:
    """The files that a medium is read from. Raises ValueError for a URL: its content is known only by fetching it."""
    for path in medium.paths:
        if is_url(path):
            raise ValueError(
                f"{path}: --dataset.feature_cache knows clips by the bytes of local files, not of a URL; copy the "
                "media to a local folder, or leave --dataset.feature_cache out"
            )
        if is_shard_path(path):
            tar = split_shard_path(path)[0]
            yield tar
            if os.path.exists(index_path(tar)):
                yield index_path(tar)
        elif medium.kind == "video" and os.path.isdir(path):
            yield from (os.path.join(path, name) for name in sorted(os.listdir(path)))
        else:
            yield path


def _signature(medium: Medium) -> tuple[str, float]:
    """(signature, time in seconds of the latest change)."""
    facts, latest = [], 0
    for path in _files(medium):
        stat = os.stat(path)
        facts.append((path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
        latest = max(latest, stat.st_mtime_ns, stat.st_ctime_ns)
    return digest(medium.paths, facts), latest / 1e9


def _content(medium: Medium) -> str:
    hasher = hashlib.sha256(medium.kind.encode())
    for path in medium.paths:
        if is_shard_path(path):
            for part in _shard_parts(path, find_in_shard(path)):
                hasher.update(len(part).to_bytes(8, "little") + part)
            continue
        is_folder = medium.kind == "video" and os.path.isdir(path)
        for file in sorted(os.listdir(path)) if is_folder else [""]:
            hasher.update(_file_digest(os.path.join(path, file) if is_folder else path) + file.encode() + b"\0")
    return hasher.hexdigest()


def _shard_parts(path: str, entry: ShardEntry) -> Iterator[bytes]:
    tar = split_shard_path(path)[0]
    yield json.dumps([entry.extension, entry.manifest and dict(entry.manifest)], sort_keys=True).encode()
    yield from read_spans(path, tar, entry.frames if entry.video is None else (entry.video,))


def _file_digest(path: str) -> bytes:
    if os.path.isdir(path):
        return bytes(32)  # a folder in a folder of frames: only its name is read
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise MediaError(path, "feature cache", f"cannot be read ({error.strerror or error})") from error
