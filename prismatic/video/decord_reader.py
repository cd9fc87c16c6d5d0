"""The decord decoder, for files that it gets right (environment: decord 0.6, whose FFmpeg is of 2018)."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from prismatic.video.checked import FileFacts, check_count, read_facts, refuse
from prismatic.video.clip import Clip, DecoderMissingError, MediaError

DECODER = "decord"

_CODECS = frozenset({"h264", "hevc", "theora", "flv1", "mpeg4"})
"""Codecs of which decord returned every frame exactly. It fails on VP9, AV1 and GIF, and is 12 frames off on WMV2."""

_NO_SEEKING = ("mpegts", "mpeg", "asf")
"""Containers in which it hangs for minutes or silently returns other frames."""


class DecordClip(Clip):
    """A video file read by decord. `threads`: decoding threads, 0 lets decord choose.

    Raises MediaError for files that decord is known to get wrong, DecoderMissingError without the package.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        try:
            import decord
        except (ImportError, OSError) as error:
            raise DecoderMissingError(
                f"--dataset.decoder decord needs the package decord ({error}): `pip install decord`, or use "
                "--dataset.decoder pyav"
            ) from error
        self._errors = (decord.DECORDError, RuntimeError, IndexError)
        facts = read_facts(path)
        _check(path, facts)
        try:
            self._reader = decord.VideoReader(os.path.abspath(path), num_threads=threads)
            check_count(path, DECODER, len(self._reader), facts)
            starts = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0].astype(np.float64)
        except self._errors as error:
            raise refuse(path, DECODER, f"cannot be opened ({error})") from error
        # It seeks by these times; of H.264 in AVI it makes nonsense and then returns any frame.
        if not np.allclose(starts - starts[0], facts.timestamps, rtol=0, atol=0.5 / facts.fps):
            raise refuse(path, DECODER, "its times of the frames are wrong")
        super().__init__(path, DECODER, **facts.of_clip())

    def _read(self, indices: list[int]) -> Iterable[np.ndarray]:
        if self._reader is None:
            raise MediaError(self.source, DECODER, "the clip was closed")
        try:
            return self._reader.get_batch(indices).asnumpy()
        except self._errors as error:
            raise refuse(self.source, DECODER, f"frames {indices} cannot be decoded ({error})") from error

    def close(self) -> None:
        """Free the reader and its file."""
        self._reader = None


def _check(path: str | os.PathLike[str], facts: FileFacts) -> None:
    """Raises MediaError for a file that decord would get wrong without saying so, or hang on."""
    if facts.container in _NO_SEEKING:
        raise refuse(path, DECODER, f"container '{facts.container}' is one in which it hangs or returns other frames")
    if facts.codec not in _CODECS:
        raise refuse(
            path, DECODER, f"codec '{facts.codec}' is none of those it decodes exactly ({', '.join(sorted(_CODECS))})"
        )
    if facts.index.hidden:
        raise refuse(path, DECODER, f"{facts.index.hidden} frames are hidden by an edit list, which it does not know")
    if facts.index.cut_short:
        raise refuse(path, DECODER, "the file is cut short, and it invents the frames that are missing")
    if not facts.index.closed:
        raise refuse(path, DECODER, "its groups of pictures are open (frames after a keyframe need those before it)")
    if not facts.index.ordered:
        raise refuse(path, DECODER, "the container has no times of showing, by which its frames could be checked")
