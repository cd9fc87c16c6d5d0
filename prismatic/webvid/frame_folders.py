"""Frames as `OUTPUT/ID/0000.png`, ... with a manifest.json: the job of `extract --format folder`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from prismatic.data.media_paths import MediaRoot
from prismatic.video.frame_folder import MANIFEST
from prismatic.video.images import IMAGE_EXTENSIONS
from prismatic.webvid.confined import video_path
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

    @cached_property
    def _root(self) -> MediaRoot:
        return MediaRoot(self.videos)

    def read(self, clip: Clip) -> None:
        """Decode a clip and write its folder, whole or not at all."""
        clip_id, path = clip
        target = folder_of(Path(self.output), clip_id)
        pictures = take_frames(video_path(self._root, path), self.spec)
        partial = Path(self.output) / f".{hashlib.blake2b(clip_id.encode(), digest_size=12).hexdigest()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for number, data in enumerate(pictures.data):
            (partial / f"{number:04d}{self.spec.suffix}").write_bytes(data)
        (partial / MANIFEST).write_text(json.dumps(pictures.manifest) + "\n", encoding="utf-8")
        try:
            _publish(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def finish(self, batch: Sequence[Clip], read: Iterator[Failure | None]) -> list[str]:
        """For each clip the reason why it failed, or ""."""
        return [result.reason if isinstance(result, Failure) else "" for result in read]


def _publish(partial: Path, target: Path) -> None:
    """Give a finished folder its name. One that is there already keeps whatever is none of its pictures."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(partial, target)
    except OSError:
        if not target.is_dir():
            raise
        if (target / MANIFEST).is_file():  # another machine was quicker with the same clip
            return
        # Of an older tool, without a word on which frames these are; or the folder of clips whose ids begin with this.
        files = sorted(partial.iterdir(), key=lambda file: file.name == MANIFEST)
        names = {file.name for file in files}
        for old in target.iterdir():
            if old.suffix.lower() in IMAGE_EXTENSIONS and old.name not in names and not old.is_dir():
                old.unlink()
        for file in files:
            os.replace(file, target / file.name)


def folder_of(output: Path, clip_id: str) -> Path:
    """The folder of a clip. Raises ValueError for an id that is no name below `output`: ids are other people's data."""
    place = PurePosixPath(clip_id)
    # "a/" and "a" would be one folder.
    plain = clip_id == place.as_posix() and not place.is_absolute() and "\0" not in clip_id
    if not plain or any(part.startswith(".") for part in place.parts):
        raise ValueError(f"the id {clip_id!r} cannot be the name of a folder")
    return output / place


def is_done(output: Path, clip_id: str) -> bool:
    """Whether the folder of a clip is complete."""
    try:
        return (folder_of(output, clip_id) / MANIFEST).is_file()
    except ValueError:
        return False
