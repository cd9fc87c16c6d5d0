"""Frames as `OUTPUT/ID/0000.png`, ... with a manifest.json: the job of `extract --format folder`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prismatic.video.frame_folder import MANIFEST
from prismatic.webvid.frames import FrameSpec, take_frames
from prismatic.webvid.pool import Failure

Clip = tuple[str, str]
"""(id, path relative to the folder of the videos)."""


@dataclass(frozen=True)
class FolderJob:
    """videos: folder of the videos. output: folder of the frames; every machine sees both under these names."""

    videos: str
    output: str
    spec: FrameSpec

    def read(self, clip: Clip) -> None:
        """Decode a clip and write its folder, whole or not at all."""
        clip_id, path = clip
        target = folder_of(Path(self.output), clip_id)
        pictures = take_frames(Path(self.videos) / path, self.spec)
        partial = Path(self.output) / f".{hashlib.blake2b(clip_id.encode(), digest_size=12).hexdigest()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for number, data in enumerate(pictures.data):
            (partial / f"{number:04d}{self.spec.suffix}").write_bytes(data)
        (partial / MANIFEST).write_text(json.dumps(pictures.manifest) + "\n", encoding="utf-8")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not (target / MANIFEST).is_file():
            shutil.rmtree(target)  # of some older tool, without a word on which frames these are
        try:
            os.rename(partial, target)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if not (target / MANIFEST).is_file():  # otherwise another machine was quicker with the same clip
                raise

    def finish(self, batch: Sequence[Clip], read: Iterator[Failure | None]) -> list[str]:
        """For each clip the reason why it failed, or ""."""
        return [result.reason if isinstance(result, Failure) else "" for result in read]


def folder_of(output: Path, clip_id: str) -> Path:
    """The folder of a clip. Raises ValueError for an id that is no name below `output`: ids are other people's data."""
    place = PurePosixPath(clip_id)
    if not clip_id or place.is_absolute() or "\0" in clip_id or any(p.startswith(".") for p in place.parts):
        raise ValueError(f"the id {clip_id!r} cannot be the name of a folder")
    return output / place


def is_done(output: Path, clip_id: str) -> bool:
    """Whether the folder of a clip is complete."""
    try:
        return (folder_of(output, clip_id) / MANIFEST).is_file()
    except ValueError:
        return False
