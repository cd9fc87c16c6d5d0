"""The torchcodec decoder, for files that it gets right. Needs FFmpeg's shared libraries on the machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from prismatic.video.checked import check_count, read_facts, refuse
from prismatic.video.clip import Clip, DecoderMissingError, MediaError

DECODER = "torchcodec"

_NO_SEEKING = ("mpegts", "mpeg")
"""Containers in which it silently returns other frames."""

# What torchcodec raises on a file; its C++ errors come as RuntimeError.
_ERRORS = (RuntimeError, ValueError, IndexError)


class TorchCodecClip(Clip):
    """A video file read by torchcodec in its exact mode. `threads`: decoding threads, 0 lets FFmpeg choose.

    Raises MediaError for files that torchcodec is known to get wrong, DecoderMissingError without a working package.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            raise _missing(error) from error
        facts = read_facts(path)
        if facts.container in _NO_SEEKING:
            raise refuse(path, DECODER, f"container '{facts.container}' is one in which it returns other frames")
        if not facts.index.ordered:
            raise refuse(path, DECODER, "the container has no times of showing, by which its frames could be checked")
        try:
            self._reader: Any = VideoDecoder(
                os.path.abspath(path), seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=threads
            )
            count = len(self._reader)
        except _ERRORS as error:
            if "libtorchcodec" in str(error):  # 0.17 loads its library at the first use, not at import
                raise _missing(error) from error
            raise refuse(path, DECODER, f"cannot be opened ({error})") from error
        check_count(path, DECODER, count, facts)
        super().__init__(path, DECODER, **facts.of_clip())

    def _read(self, indices: list[int]) -> Iterable[np.ndarray]:
        if self._reader is None:
            raise MediaError(self.source, DECODER, "the clip was closed")
        try:
            return self._reader.get_frames_at(indices=indices).data.numpy()
        except _ERRORS as error:
            raise refuse(self.source, DECODER, f"frames {indices} cannot be decoded ({error})") from error

    def close(self) -> None:
        """Free the reader and its file."""
        self._reader = None


def _missing(error: Exception) -> DecoderMissingError:
    first_line = str(error).strip().split("\n")[0]
    return DecoderMissingError(
        f"--dataset.decoder torchcodec does not work here ({first_line}): it needs FFmpeg's shared libraries and "
        "`pip install 'prismatic[torchcodec]'` in a version that fits torch; or use --dataset.decoder pyav"
    )
