"""Frames as WebDataset tar shards with an index beside each: the job of `extract --format shards`.

Which clips go into which shard is written down (plan.jsonl) before the first is made. So a shard is a function of its
line in the plan, whoever makes it, and however often.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prismatic.data.media_paths import MediaRoot
from prismatic.video.shards import INDEX_SUFFIX, MANIFEST_MEMBER
from prismatic.webvid.confined import video_path
from prismatic.webvid.files import whole_file
from prismatic.webvid.frame_folders import Clip
from prismatic.webvid.frames import FrameSpec, Pictures, take_frames
from prismatic.webvid.pool import Failure

PLAN = "plan.jsonl"


@dataclass(frozen=True)
class PlannedShard:
    """A line of the plan: the clips of shard `number`, in order."""

    number: int
    clips: tuple[Clip, ...]

    @property
    def name(self) -> str:
        """Of its tar file."""
        return f"{self.number:06d}.tar"


@dataclass(frozen=True)
class ShardJob:
    """videos: folder of the videos. output: folder of the shards; every machine sees both under these names."""

    videos: str
    output: str
    spec: FrameSpec

    @cached_property
    def _root(self) -> MediaRoot:
        return MediaRoot(self.videos)

    def read(self, task: tuple[int, Clip]) -> Pictures:
        """Decode and encode one clip. task: (number of its shard, clip)."""
        return take_frames(video_path(self._root, task[1][1]), self.spec)

    def finish(self, batch: Sequence[tuple[int, Clip]], read: Iterator[Pictures | Failure]) -> None:
        """Write the shard, then its index, which says that it is whole. A batch is one shard."""
        clips: dict[str, Any] = {}
        failed: dict[str, str] = {}
        tar_path = Path(self.output) / f"{batch[0][0]:06d}.tar"
        with whole_file(tar_path, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for (_, (clip_id, _)), pictures in zip(batch, read, strict=True):
                if isinstance(pictures, Failure):
                    failed[clip_id] = pictures.reason
                    continue
                spans = list(self._add(tar, key_of(clip_id), pictures))
                clips[clip_id] = {**pictures.manifest, "frames": spans}
        index = {"bytes": tar_path.stat().st_size, "clips": clips, "failed": failed}
        with whole_file(index_file(Path(self.output), batch[0][0])) as file:
            json.dump(index, file, separators=(",", ":"))

    def _add(self, tar: tarfile.TarFile, key: str, pictures: Pictures) -> Iterator[tuple[int, int]]:
        """Write the members of a clip; yields (offset, bytes) of each picture."""
        manifest = (json.dumps(pictures.manifest) + "\n").encode()
        members = [(f"{number:04d}{self.spec.suffix}", data) for number, data in enumerate(pictures.data)]
        for extension, data in [*members, (f".{MANIFEST_MEMBER}", manifest)]:
            # No time, no owner: equal frames give equal bytes.
            info = tarfile.TarInfo(f"{key}.{extension.removeprefix('.')}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            if extension != f".{MANIFEST_MEMBER}":
                padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                yield tar.offset - padded, len(data)


def key_of(clip_id: str) -> str:
    """The WebDataset key of a clip: a key ends at its first dot, and a slash would make folders."""
    return "".join(f"%{ord(c):02X}" if c in "%./\\\0" else c for c in clip_id)


def index_file(output: Path, number: int) -> Path:
    """Where the index of a shard is."""
    return output / f"{number:06d}{INDEX_SUFFIX}"


def read_plan(output: Path) -> Iterator[PlannedShard]:
    """The shards that are planned. A last line that a kill cut off counts as not written."""
    file = output / PLAN
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            row = json.loads(line)
            yield PlannedShard(row["shard"], tuple((clip_id, path) for clip_id, path in row["clips"]))


def extend_plan(output: Path, groups: Iterable[Sequence[Clip]], first: int) -> None:
    """Plan further shards, numbered from `first` on: all of them, or none when killed meanwhile."""
    plan = output / PLAN
    with whole_file(plan) as file:
        if plan.is_file():
            with plan.open(encoding="utf-8") as before:
                file.writelines(line for line in before if line.endswith("\n"))
        for number, clips in enumerate(groups, start=first):
            file.write(json.dumps({"shard": number, "clips": clips}, ensure_ascii=False) + "\n")


def read_outcome(output: Path, number: int) -> tuple[list[str], dict[str, str]] | None:
    """(ids in a shard, reasons of those that failed), or None when the shard is not made."""
    file = index_file(output, number)
    if not file.is_file():
        return None
    index = json.loads(file.read_text(encoding="utf-8"))
    return list(index["clips"]), index["failed"]
