"""The table of a video's frames and keyframes, read from its packets without decoding.

Owns what a container says. What a decoder makes of it (a first frame that cannot be decoded, a tail cut off) is
corrected in pyav_reader.py.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

NO_TIME = np.iinfo(np.int64).min
"""Stands for a packet time that the container does not give."""

AV_ERRORS = (av.FFmpegError, KeyError, IndexError, EOFError, MemoryError, UnicodeDecodeError)
"""What PyAV raises on junk (found by fuzzing); nothing wider is caught anywhere."""


@dataclass(frozen=True)
class Packed:
    """A packet by which a place in the file is known again: shown at tick `pts`, `size` bytes long.

    rank: number of shown frames before it.
    """

    rank: int
    pts: int
    size: int


@dataclass(frozen=True)
class PacketIndex:
    """Shown frames of one video stream.

    Attributes:
        ticks: int64 [len], ascending presentation times in units of the stream's time base.
        keys: packets at which decoding can start, in order of time; none when not `ordered`.
        first: the first packet of the file; None when not `ordered`.
        ordered: a decoded frame can be known by its time, because every packet has a time of its own that agrees with
            the order of showing. Otherwise (AVI with B-frames) frames can only be counted from the start.
        closed: no frame stored after a keyframe is shown before it, so what follows a keyframe needs nothing before it.
        torn_head: the file does not begin with a keyframe.
        cut_short: the file ends in the middle of a packet, or cannot be read to its end.
        hidden: number of packets that are decoded and not shown (an edit list, alternate references).
        last_ticks: how long the last frame lasts, 0 when unknown.
    """

    ticks: np.ndarray
    keys: tuple[Packed, ...]
    first: Packed | None
    ordered: bool
    closed: bool
    torn_head: bool
    cut_short: bool
    hidden: int
    last_ticks: int

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def keyframes(self) -> np.ndarray:
        """Numbers of the shown frames that are keyframes, int64, ascending."""
        return np.asarray([key.rank for key in self.keys if self.shows(key)], np.int64)

    def key_before(self, rank: int) -> Packed | None:
        """The last keyframe from which frame `rank` can be decoded, or None for the start of the file."""
        place = bisect_right(self.keys, rank, key=lambda key: key.rank) - 1
        return self.keys[place] if place >= 0 else None

    def shows(self, packed: Packed) -> bool:
        """Whether a packet's picture is one of the shown frames (and not one hidden by an edit list)."""
        return packed.rank < len(self) and int(self.ticks[packed.rank]) == packed.pts

    def keep(self, shown: np.ndarray) -> PacketIndex:
        """The index of the frames for which bool `shown` [len] holds."""
        if shown.all():
            return self
        before = np.concatenate([[0], np.cumsum(shown)])
        keys = tuple(replace(key, rank=int(before[key.rank])) for key in self.keys)
        return replace(self, ticks=self.ticks[shown], keys=keys)


class _Row(NamedTuple):
    """What is noted of one packet."""

    pts: int
    dts: int
    is_key: bool
    shown: bool
    duration: int
    size: int


def read_packets(container: InputContainer, stream: VideoStream) -> PacketIndex:
    """Read every packet of `stream` (no decoding) and sort out which are frames. Leaves the container at its end."""
    rows: list[_Row] = []
    torn = False
    vp8 = stream.codec_context.codec.canonical_name == "vp8"
    try:
        for packet in container.demux(stream):
            if not packet.size:  # the flush packet at the end; and AVI's way of saying "same picture again"
                continue
            pts = NO_TIME if packet.pts is None else packet.pts
            dts = NO_TIME if packet.dts is None else packet.dts
            # Bit 4 of a VP8 packet is show_frame (RFC 6386, 9.1): an alternate reference is never shown.
            shown = not (packet.is_discard or (vp8 and not memoryview(packet)[0] & 0x10))
            rows.append(_Row(pts, dts, packet.is_keyframe, shown, packet.duration or 0, packet.size))
            torn = packet.is_corrupt
    except AV_ERRORS:
        torn = True
    # A transport stream does not say how long a packet should be; it is made of blocks of one of these sizes.
    blocks = (188, 192, 204) if container.format.name == "mpegts" else (1,)
    return _build(rows, stream, torn or all(container.size % block for block in blocks))


def _build(rows: list[_Row], stream: VideoStream, torn: bool) -> PacketIndex:
    shown = [row for row in rows if row.shown]
    pts = np.asarray([row.pts for row in shown], np.int64)
    timed = NO_TIME not in pts
    ordered = timed and len(np.unique(pts)) == len(pts) and not _times_mislead(rows, stream)
    ticks = np.sort(pts if timed else np.asarray([row.dts for row in shown], np.int64))
    if NO_TIME in ticks:
        ticks = np.arange(len(ticks), dtype=np.int64) * max(1, rows[0].duration)
    starts = [row for row in rows if row.is_key and row.pts != NO_TIME] if ordered else []
    keys = [Packed(int(np.searchsorted(ticks, row.pts)), row.pts, row.size) for row in starts]
    hidden = len(rows) - len(shown)
    return PacketIndex(
        ticks=ticks,
        keys=tuple(sorted(keys, key=lambda key: key.pts)),
        first=Packed(0, rows[0].pts, rows[0].size) if ordered and rows and rows[0].pts != NO_TIME else None,
        ordered=ordered,
        closed=_is_closed(rows),
        torn_head=bool(rows) and not rows[0].is_key,
        cut_short=torn,
        hidden=hidden,
        last_ticks=rows[-1].duration if rows else 0,
    )


def _is_closed(rows: list[_Row]) -> bool:
    key_time = NO_TIME
    for row in rows:
        key_time = row.pts if row.is_key else key_time
        if row.pts < key_time:
            return False
    return True


def _times_mislead(rows: list[_Row], stream: VideoStream) -> bool:
    """Whether the order of presentation times may differ from the order in which the decoder shows frames.

    AVI has no presentation times: FFmpeg counts packets, which is wrong when the decoder reorders (B-frames); the same
    holds for an MP4 that was written without its table of offsets. Joined transport streams start their clock anew.
    """
    times = np.asarray([row[:2] for row in rows if NO_TIME not in row[:2]], np.int64).reshape(-1, 2)
    if (np.diff(times[:, 1]) < 0).any():
        return True
    if not stream.codec_context.has_b_frames:
        return False
    return stream.container.format.name == "avi" or (len(times) > 2 and bool((times[:, 0] == times[:, 1]).all()))
