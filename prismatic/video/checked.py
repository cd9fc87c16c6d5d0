"""Clips of other libraries, held against PyAV's table of frames before a single frame of theirs is believed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismatic.video.clip import MediaError
from prismatic.video.packets import PacketIndex
from prismatic.video.pyav_reader import PyAVClip

REMEDY = "use --dataset.decoder pyav"


@dataclass(frozen=True)
class FileFacts:
    """What PyAV says of a video file: timestamps, fps and size as in `Clip`; codec and container by FFmpeg's names."""

    index: PacketIndex
    codec: str
    container: str
    timestamps: np.ndarray
    fps: float
    size: tuple[int, int]

    def of_clip(self) -> dict[str, Any]:
        """What a Clip of this file is made with."""
        keys = self.index.keyframes
        return {"timestamps": self.timestamps, "fps": self.fps, "size": self.size, "keyframes": keys}


def read_facts(path: str | os.PathLike[str]) -> FileFacts:
    """Open and close a file with PyAV. Raises MediaError as PyAVClip does."""
    with PyAVClip(path) as clip:
        size = (clip.width, clip.height)
        return FileFacts(clip.index, clip.codec, clip.container_format, clip.timestamps, clip.fps, size)


def refuse(path: str | os.PathLike[str], decoder: str, reason: str) -> MediaError:
    """The error for a file that PyAV reads and `decoder` would get wrong."""
    return MediaError(path, decoder, f"{reason}; {REMEDY}")


def check_count(path: str | os.PathLike[str], decoder: str, count: int, facts: FileFacts) -> None:
    """Raises MediaError when the decoder's number of frames is not the number of frames that are shown."""
    if count != len(facts.index):
        raise refuse(path, decoder, f"it counts {count} frames where {len(facts.index)} are shown")
