"""Writes small video files of every kind in the decoder table, with PyAV's own encoders.

Frame i shows i: twelve black or white blocks spell its bits, over a drifting gradient (so that P and B frames carry
something). `read_code` reads the number back, which tells a wrong frame from a badly decoded one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

WIDTH, HEIGHT, BLOCK = 128, 96, 32
BITS = (WIDTH // BLOCK) * (HEIGHT // BLOCK)


def code_frame(index: int) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3] whose blocks spell `index` (below 2**12), most significant bit first."""
    across = np.arange(WIDTH, dtype=np.int64)[None, :] + 3 * index
    down = np.arange(HEIGHT, dtype=np.int64)[:, None] * 2
    texture = (across + down) % 48
    image = np.repeat(texture[:, :, None], 3, axis=2)
    for bit in range(BITS):
        row, column = divmod(bit, WIDTH // BLOCK)
        if index >> (BITS - 1 - bit) & 1:
            image[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] += 200
    return image.astype(np.uint8)


def read_code(frame: np.ndarray) -> int:
    """The number that a decoded frame (uint8 [H, W, 3], unrotated) shows."""
    bits = frame[:, :, 1].reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK).mean(axis=(1, 3)).ravel() > 124
    return int("".join("1" if bit else "0" for bit in bits), 2)


def write_video(
    path: Path,
    codec: str,
    frames: int,
    *,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    rotation: int | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """Encode `frames` coded frames at 25 per second into `path`.

    ticks: presentation time of each frame in 1/1000 s (a variable frame rate). rotation: degrees counter-clockwise that
    the container asks a player to turn the picture by. size: (width, height) that the coded frames are cut to.
    """
    time_base = Fraction(1, 1000) if ticks is not None else Fraction(1, 25)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = time_base
        if rotation is not None:
            if not hasattr(type(stream), "set_display_rotation"):
                pytest.skip("PyAV before 18 cannot write a rotation")
            stream.set_display_rotation(rotation)
        for i in range(frames):
            image = np.ascontiguousarray(code_frame(i)[: size[1], : size[0]])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts = ticks[i] if ticks is not None else i
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio_only(path: Path) -> Path:
    """A file with one audio stream and no video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for i in range(8):
            frame.pts = i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut_with_edit_list(source: Path, path: Path, start: int) -> Path:
    """Copy `source` so that its first `start` frames are kept in the file and hidden by an edit list."""
    with av.open(str(source)) as reader, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as writer:
        video = reader.streams.video[0]
        copy = writer.add_stream_from_template(video)
        shift = round(start / 25 / video.time_base)
        for packet in reader.demux(video):
            if packet.size:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                writer.mux(packet)
    return path


def truncate(source: Path, path: Path, share: float) -> Path:
    """Copy the first `share` of the bytes of `source`."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


X264 = {"g": "12", "bf": "2", "threads": "1", "preset": "veryfast"}


def _irregular_ticks(frames: int) -> list[int]:
    steps = np.random.default_rng(3).integers(10, 120, size=frames)
    return np.concatenate([[0], np.cumsum(steps)[:-1]]).tolist()


def _h264(suffix: str, frames: int = 60, **changes: object) -> Callable[[Path], Path]:
    return lambda folder: write_video(folder / f"h264{suffix}", "libx264", frames, options=X264, **changes)


def _cut(folder: Path) -> Path:
    return cut_with_edit_list(_h264("-whole.mp4", 70)(folder), folder / "cut.mp4", 17)


def _theora(folder: Path) -> Path:
    # No wheel of PyAV has an encoder for it: these are code_frame(0..59), written by FFmpeg's libtheora, 12 a group.
    return shutil.copy(Path(__file__).with_name("theora.ogv"), folder / "theora.ogv")


def _truncated(folder: Path) -> Path:
    whole = write_video(
        folder / "whole.mp4", "libx264", 60, options={**X264, "qp": "12"}, muxer={"movflags": "faststart"}
    )
    return truncate(whole, folder / "truncated.mp4", 0.6)


def _patched(name: str, found: bytes, *patches: tuple[int, bytes], **changes: object) -> Callable[[Path], Path]:
    """A file in whose bytes `patches` (distance from each place where `found` stands, new bytes) are written."""

    def make(folder: Path) -> Path:
        codec = "mpeg4" if name.endswith(".avi") else "libx264"
        path = write_video(folder / name, codec, 60, **changes)  # type: ignore[arg-type]
        data = bytearray(path.read_bytes())
        place = -1
        while (place := data.find(found, place + 1)) >= 0:
            for distance, patch in patches:
                data[place + distance : place + distance + len(patch)] = patch
        path.write_bytes(data)
        return path

    return make


def _plain(name: str, codec: str, **changes: object) -> Callable[[Path], Path]:
    frames = int(changes.pop("frames", 60))  # type: ignore[call-overload]
    return lambda folder: write_video(folder / name, codec, frames, **changes)


KINDS: dict[str, Callable[[Path], Path]] = {
    "h264-mp4": _h264(".mp4"),
    "h264-mkv": _h264(".mkv"),
    "h264-mov": _h264(".mov"),
    "h264-m4v": _h264(".m4v"),
    "h264-flv": _h264(".flv"),
    "h264-ts": _h264(".ts"),
    "h264-avi": _h264(".avi"),
    "hevc-mp4": _plain("hevc.mp4", "libx265", options={"x265-params": "keyint=12:bframes=2:log-level=none:pools=1"}),
    "theora-ogv": _theora,
    "flv1-flv": _plain("flv1.flv", "flv1"),
    "vp8-webm": _plain("vp8.webm", "libvpx", options={"g": "12", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    "vp9-webm": _plain("vp9.webm", "libvpx-vp9", options={"g": "12", "cpu-used": "8", "deadline": "realtime"}),
    "vp9-altref-webm": _plain("vp9a.webm", "libvpx-vp9", options={"g": "30", "cpu-used": "5", "lag-in-frames": "16"}),
    "av1-mp4": _plain("av1.mp4", "libsvtav1", options={"preset": "12", "g": "12"}),
    "wmv2-wmv": _plain("wmv2.wmv", "wmv2"),
    "mpeg4-avi": _plain("mpeg4.avi", "mpeg4", options={"qscale": "3"}),
    "mpeg4-b-avi": _plain("mpeg4b.avi", "mpeg4", options={"bf": "2", "qscale": "3"}),
    "gif": _plain("clip.gif", "gif", pix_fmt="rgb8"),
    "vfr-mp4": _h264("-vfr.mp4", ticks=_irregular_ticks(60)),
    "cut-mp4": _cut,
    "mpeg2-mpg": _plain("mpeg2.mpg", "mpeg2video", options={"g": "12", "bf": "2", "qscale": "3"}),
    "mpeg2-ts": _plain("mpeg2.ts", "mpeg2video", options={"g": "12", "bf": "2", "qscale": "3"}),
    "truncated-mp4": _truncated,
    "one-frame-mp4": _h264("-one.mp4", 1),
    "rotated-90-mp4": _h264("-turned.mp4", rotation=90),
    "ten-bit-mp4": _h264("-ten.mp4", pix_fmt="yuv420p10le"),
    "open-gop-mp4": _plain("open.mp4", "libx264", options={**X264, "x264-params": "open-gop=1"}),
    "refresh-mp4": _plain("refresh.mp4", "libx264", options={"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
    "mjpeg-avi": _plain("mjpeg.avi", "mjpeg", pix_fmt="yuvj420p"),
    "interlaced-mp4": _plain("fields.mp4", "libx264", options={**X264, "x264-params": "tff=1"}),
    "interlaced-mpg": _plain("fields.mpg", "mpeg2video", options={"g": "12", "bf": "2", "flags": "+ildct+ilme"}),
    "odd-size-mp4": _h264("-odd.mp4", pix_fmt="yuv444p", size=(127, 95)),
    "odd-size-webm": _plain("odd.webm", "libvpx", options={"g": "12"}, size=(127, 95)),
    # Headers of AVI: frames in all (`avih`), length of the stream (`strh`), and the index at the end (`idx1`).
    "wrong-count-avi": _patched("count.avi", b"avih", (24, b"\x07\0\0\0"), options={"qscale": "3", "g": "12"}),
    "wrong-length-avi": _patched("length.avi", b"strh", (40, b"\xff\x03\0\0"), options={"qscale": "3"}),
    "no-index-avi": _patched("index.avi", b"idx1", (0, b"JUNK"), options={"qscale": "3", "g": "12"}),
    "no-cues-mkv": _h264("-live.mkv", muxer={"live": "1"}),
    "fragmented-mp4": _h264("-fragments.mp4", muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    # `mdhd` tells how long the track lasts: version and flags, made, changed, time scale, duration.
    "wrong-duration-mp4": _patched("duration.mp4", b"mdhd", (20, b"\0\0\0\x09"), options=X264),
    "long-gop-mp4": _plain("long.mp4", "libx264", options={"g": "250", "threads": "1"}),
}
"""Kind -> function that writes one such file into a folder and returns its path."""
