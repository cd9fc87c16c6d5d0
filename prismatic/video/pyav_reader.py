"""The default decoder: PyAV. Gives exactly the frames that a full sequential decode numbers so.

What a container gets wrong is found and paid for with a slower, safe way:

* seeking that lands elsewhere (transport streams): decoding starts at the keyframe's own packet or at the file's start;
* keyframes that are none: the frame does not appear, or appears damaged, and decoding starts at the file's start;
* times that do not tell the order of showing (AVI with B-frames): frames are counted from the start;
* a head or tail that cannot be decoded (streams cut out of longer ones): those frames are not counted.

A packet damaged in the middle of a file keeps its number: asking for it is a MediaError unless the decoder conceals the
damage; the frames around it can be had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prismatic.video.clip import Clip, MediaError, check_size
from prismatic.video.finder import FrameFinder
from prismatic.video.packets import AV_ERRORS, PacketIndex, read_packets
from prismatic.video.walk import DECODER, Walk

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def explain(path: str | os.PathLike[str], decoder: str, error: BaseException) -> MediaError:
    """What went wrong with a file, in words: a library's own texts name neither the file nor the likely cause."""
    if not Path(path).exists():
        return MediaError(path, decoder, "no such file")
    if isinstance(error, PermissionError):
        return MediaError(path, decoder, "no permission to read it")
    if Path(path).stat().st_size == 0:
        return MediaError(path, decoder, "the file is empty")
    # FFmpeg's full text ends with the path: the same file has the same reason wherever it lies.
    text = getattr(error, "strerror", None) or error
    reason = f"is no video, is damaged, or was cut off before its index ({type(error).__name__}: {text})"
    return MediaError(path, decoder, reason)


class PyAVClip(Clip):
    """A video file. Opening reads its packets and decodes one frame; `get` decodes the rest as it is asked for.

    Non-square pixels are not stretched. Frames of another size than the first are scaled to it.

    Args:
        path: the file.
        threads: decoding threads; 1 suits DataLoader workers, 0 is one per core.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        from av.video.reformatter import VideoReformatter

        try:
            self._walk = Walk(path, threads)
        except AV_ERRORS as error:
            raise explain(path, DECODER, error) from error
        try:
            index = read_packets(self._walk.container, self._walk.stream)
            self._finder = FrameFinder(self._walk, index)
            frame = self._finder.trim()
            if frame is None:
                raise MediaError(path, DECODER, "not a single frame of it can be decoded")
            check_size(path, DECODER, frame.width, frame.height)
        except AV_ERRORS as error:
            self._walk.close()
            raise explain(path, DECODER, error) from error
        except MediaError:
            self._walk.close()
            raise
        self._coded_size = (frame.width, frame.height)
        # One for all frames: it keeps its tables of conversion.
        self._reformatter = VideoReformatter()
        turned = frame.rotation % 180 != 0
        timestamps, fps = _times(self.index, self._walk)
        size = self._coded_size[::-1] if turned else self._coded_size
        super().__init__(path, DECODER, timestamps=timestamps, fps=fps, size=size, keyframes=self.index.keyframes)

    @property
    def index(self) -> PacketIndex:
        """The table of frames; other decoders are checked against it."""
        return self._finder.index

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec ("h264")."""
        return self._walk.stream.codec_context.codec.canonical_name

    @property
    def container_format(self) -> str:
        """FFmpeg's names of the container's format ("mov,mp4,m4a,3gp,3g2,mj2")."""
        return self._walk.container.format.name

    def close(self) -> None:
        """Close the file."""
        self._finder.forget()
        self._walk.close()

    def _read(self, indices: list[int]) -> Iterator[np.ndarray]:
        self._finder.plan(indices)
        for index in indices:
            try:
                frame = self._finder.find(index)
            except AV_ERRORS as error:
                raise explain(self.source, DECODER, error) from error
            if frame is None:
                place = f"frame {index} of {len(self)} (at {self.timestamps[index]:.3f} s)"
                raise MediaError(self.source, DECODER, f"{place} cannot be decoded: its data is damaged or missing")
            yield self._picture(frame)

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], turned as the container asks."""
        rgb = self._reformatter.reformat(frame, *self._coded_size, "rgb24", **one_thread())
        # rotation: degrees counter-clockwise, which is also np.rot90's way round.
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)


@cache
def one_thread() -> dict[str, int]:
    """Keeps the colour conversion of a frame off the threads that newer PyAV starts for it: they cost far more than it.

    For 128 x 128 pixels 0.15 CPU-ms a frame against 0.01; with busy cores several ms of waiting.
    """
    from av.video.reformatter import VideoReformatter

    return {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}


def _times(index: PacketIndex, walk: Walk) -> tuple[np.ndarray, float]:
    """Seconds of each frame from the first on (float64 [len]), and mean frames per second."""
    base = float(walk.stream.time_base or 0) or 1.0
    seconds = (index.ticks - index.ticks[0]).astype(np.float64) * base
    if seconds[-1] > 0:
        return seconds, (len(seconds) - 1) / float(seconds[-1])
    rate = 1.0 / (index.last_ticks * base) if index.last_ticks > 0 else float(walk.stream.average_rate or 0)
    return seconds, rate or 1.0
