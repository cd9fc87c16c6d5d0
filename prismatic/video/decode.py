"""The door to moving pictures: `open_video(path, decoder)` and the registry of decoders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from prismatic.registry import Registry
from prismatic.video.clip import Clip, DecoderMissingError, MediaError
from prismatic.video.frame_folder import open_folder, open_frames
from prismatic.video.images import read_image
from prismatic.video.shards import is_shard_path, open_shard
from prismatic.video.storage import as_local_file, delete_with, is_dir, is_url, read_bytes

__all__ = [
    "DECODERS",
    "VIDEO_EXTENSIONS",
    "Clip",
    "DecoderMissingError",
    "MediaError",
    "is_video",
    "open_frames",
    "open_video",
    "read_image",
]

VIDEO_EXTENSIONS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".flv", ".wmv", ".webm", ".m4v"})
"""Extensions by which an annotation's path is known to be a video. `open_video` itself looks at the content: .gif, .ts,
.mpg, .mpeg and .ogv files open as well when a path says so, but are not taken for videos by their name."""

Decoder = Callable[[str | os.PathLike[str], int], Clip]

DECODERS: Registry[Decoder] = Registry("decoder", flag="--dataset.decoder")
"""Id -> (path, threads) -> Clip."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether the path's extension, in any case, is one of VIDEO_EXTENSIONS. The file is not looked at."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def open_video(path: str | os.PathLike[str], decoder: str = "pyav", *, threads: int = 1) -> Clip:
    """Open a video file or a folder of frames as a clip, to be closed after use (`with open_video(...) as clip`).

    A folder opens as frames whatever the decoder. `pyav` returns exactly the frames that a full sequential decode
    numbers so, on every kind of file; the others refuse the kinds they are known to get wrong.

    Args:
        path: a file or folder, local or a URL that fsspec understands; or one clip of a WebDataset shard,
            "shards/000000.tar#ID": its frames, or a video file in it.
        decoder: an id of DECODERS.
        threads: decoding threads; 1 suits DataLoader workers (and was the quickest on clips of seconds), 0 is one per
            core.

    Raises:
        MediaError: the file is missing, unreadable, no video, or refused by the decoder.
        UnknownIdError: no such decoder.
        DecoderMissingError: the decoder's package is not installed or does not work here.
    """
    opener = DECODERS.get(decoder)
    if threads < 0:
        raise ValueError(f"threads must be 0 (one per core) or more, got {threads}")
    if is_shard_path(path):
        found = open_shard(str(path))
        return found if isinstance(found, Clip) else _open_fetched(path, *found, opener, threads)
    if is_dir(path):
        return open_folder(path)
    return _open_fetched(path, read_bytes(path), str(path), opener, threads) if is_url(path) else opener(path, threads)


def _open_fetched(path: str | os.PathLike[str], data: bytes, name: str, opener: Decoder, threads: int) -> Clip:
    """A video whose bytes are in memory. Decoders read local files: it becomes one, which goes when the clip goes."""
    file = as_local_file(data, name)
    try:
        clip = opener(file, threads)
    except MediaError as error:
        file.unlink()
        raise MediaError(path, error.decoder, error.reason) from error
    except BaseException:
        file.unlink()
        raise
    clip.source = str(path)
    delete_with(clip, file)
    return clip


@DECODERS.register("pyav")
def _pyav(path: str | os.PathLike[str], threads: int) -> Clip:
    from prismatic.video.pyav_reader import PyAVClip

    return PyAVClip(path, threads=threads)


@DECODERS.register("torchcodec")
def _torchcodec(path: str | os.PathLike[str], threads: int) -> Clip:
    from prismatic.video.torchcodec_reader import TorchCodecClip

    return TorchCodecClip(path, threads=threads)


@DECODERS.register("decord")
def _decord(path: str | os.PathLike[str], threads: int) -> Clip:
    from prismatic.video.decord_reader import DecordClip

    return DecordClip(path, threads=threads)


@DECODERS.register("frame-folder")
def _frame_folder(path: str | os.PathLike[str], threads: int) -> Clip:
    if os.path.isfile(path):
        raise MediaError(path, "frame-folder", "is a file, not a folder of frames; use --dataset.decoder pyav")
    return open_folder(path)
