"""Finds a numbered frame in an open video with the least decoding that is still exact.

A frame is known by its presentation time. Decoding goes on from where it stands, or from the last keyframe before the
frame when that lies ahead; frames that nothing refers to and nobody asked for are not decoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from av.video.frame import PictureType

from prismatic.video.packets import Packed, PacketIndex
from prismatic.video.walk import Walk

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

_SEEK_COST = 4
"""Frames of decoding that one seek is worth: it throws away the decoder's look-ahead and reads a keyframe."""


class FrameFinder:
    """Decodes frames of `index` with `walk`.

    Attributes:
        index: the frames that exist. `trim` takes those away that the decoder does not show at either end.
    """

    def __init__(self, walk: Walk, index: PacketIndex) -> None:
        self.index = index
        self._walk = walk
        self._by_time = index.ordered
        self._whole = False  # whether the file must be decoded from its start, frame by frame
        self._wanted: set[int] = set()  # ticks of the frames of the plan
        self._last: set[int] = set()  # of these, the ticks after which decoding goes on elsewhere
        self._in_fields = False  # whether a picture may lie in two packets
        # Where decoding stands, and how it came there:
        self._at = -1  # number of the frame that came last
        self._frame: VideoFrame | None = None
        self._from_start = True
        self._unproved: Packed | None = None  # the keyframe sought to, until its picture has come out whole
        self._leaving_out = False  # whether frames out of the plan are not decoded
        self._onward = False  # whether all that is ahead can still be decoded from here

    def trim(self) -> VideoFrame | None:
        """Take the frames from the index that the decoder will not show: a stream's torn head, a file's torn tail.

        Only the head is decoded, up to its first frame; for a file cut short also what follows its last keyframe; the
        whole file only when it is torn and its frames must be counted. Returns the first frame and stands at it, or
        None when there is none.
        """
        torn = self.index.cut_short or (self.index.torn_head and not self._by_time)
        if torn and len(self.index):
            self._trim_tail()
        self._rewind()
        frame = self._walk.next()
        if frame is None or not len(self.index):
            return None
        self._in_fields = frame.interlaced_frame
        if self._by_time and frame.pts is not None:
            self.index = self.index.keep(self.index.ticks >= frame.pts)
        if not len(self.index):
            return None
        if self._stand_at(frame):
            return frame
        self._by_time = False
        self.plan([0])
        return self.find(0)

    def _trim_tail(self) -> None:
        numbers = np.arange(len(self.index))
        key = self.index.key_before(len(self.index) - 1) if self._by_time else None
        frames = self._rest() if key is not None and self._walk.seek(key) else []
        if key is None or (key.pts, True) not in frames:
            self._walk.rewind(self.index.first)
            frames, key = self._rest(), None
        ticks = [pts for pts, _ in frames]
        if self._by_time and None not in ticks:
            safe = numbers < (key.rank if key is not None else 0)
            self.index = self.index.keep(safe | np.isin(self.index.ticks, ticks))
        else:
            self.index = self.index.keep(numbers < len(ticks))

    def _rest(self) -> list[tuple[int | None, bool]]:
        """Time of each frame from here to the end, and whether it needs no other. The pictures are let go."""
        rest = []
        while (frame := self._walk.next()) is not None:
            rest.append((frame.pts, _is_intra(frame)))
        return rest

    def plan(self, numbers: Iterable[int]) -> None:
        """Say which frames `find` will be called for next; those in between need not be decoded for themselves."""
        # Packets that the decoder has read ahead may have been left out because the last plan did not want them.
        self._onward = not self._leaving_out
        ordered = sorted(numbers)
        ticks = self.index.ticks[ordered].tolist()
        following = zip(ordered, [*ordered[1:], None], ticks, strict=True)
        self._wanted = set(ticks)
        self._last = {tick for number, after, tick in following if after is None or self._key_ahead(number, after)}

    def find(self, number: int) -> VideoFrame | None:
        """Frame `number` of the plan, or None when it does not appear even if the whole file is decoded."""
        if self._at == number and self._frame is not None:
            return self._frame
        self._approach(number)
        frame = self._advance(number)
        if frame is None and self._by_time and (self._leaving_out or not self._from_start):
            # A keyframe that is none (gradual refresh, a mark that lies): such a file is decoded whole.
            self._whole = True
            self._rewind()
            frame = self._advance(number)
        if frame is None and self.index.ordered and not self._by_time:
            # The times turned out to lie on the way: count from the start.
            self._rewind()
            frame = self._advance(number)
        return frame

    def forget(self) -> None:
        """Let go of the frame that is kept."""
        self._frame = None

    def _rewind(self) -> None:
        self._walk.rewind(self.index.first)
        self._set_out(from_start=True, unproved=None)

    def _set_out(self, *, from_start: bool, unproved: Packed | None) -> None:
        self._at, self._frame, self._from_start, self._unproved = -1, None, from_start, unproved
        self._onward, self._leaving_out = True, False

    def _approach(self, number: int) -> None:
        """Stand anywhere before frame `number` from where it can be decoded, as near as is worth it."""
        standing = self._onward and self._at < number
        key = self._key_ahead(self._at if standing else -_SEEK_COST, number)
        if key is None:
            if not standing:
                self._rewind()
        elif self._walk.seek(key):
            self._set_out(from_start=False, unproved=key if self.index.shows(key) else None)
        else:
            self._whole = True
            self._rewind()

    def _key_ahead(self, at: int, number: int) -> Packed | None:
        """The keyframe to seek to for frame `number` when decoding stands at frame `at`; None to decode onward."""
        key = self.index.key_before(number) if self._by_time and not self._whole else None
        return key if key is not None and key.rank > at + _SEEK_COST else None

    def _advance(self, number: int) -> VideoFrame | None:
        """Decode up to frame `number`; None when it does not come, or comes damaged after a seek."""
        # In a torn file nothing is left out: how the decoder patches a torn picture depends on all before it.
        self._leaving_out = self._by_time and not self._whole and not self.index.cut_short
        needed = self._is_needed if self._leaving_out else None
        last = self._is_last if self._leaving_out and not self._in_fields else None
        while (frame := self._walk.next(needed, last)) is not None:
            if not self._stand_at(frame):
                self._by_time = False
                return None
            if self._unproved is not None and frame.pts >= self._unproved.pts:
                if frame.pts > self._unproved.pts or not _is_intra(frame):
                    return None
                self._unproved = None
            if self._at >= number:
                good = self._at == number and (self._from_start or not frame.is_corrupt)
                return frame if good else None
        return None

    def _is_needed(self, packet: Packet) -> bool:
        proof = self._unproved is not None and packet.pts == self._unproved.pts
        return proof or packet.pts is None or packet.pts in self._wanted

    def _is_last(self, packet: Packet) -> bool:
        return packet.pts in self._last

    def _stand_at(self, frame: VideoFrame) -> bool:
        """Note that `frame` has been decoded; False when its time contradicts the index."""
        if not self._by_time:
            self._at, self._frame = self._at + 1, frame
            return True
        rank = -1 if frame.pts is None else int(np.searchsorted(self.index.ticks, frame.pts))
        if rank <= self._at or rank == len(self.index) or self.index.ticks[rank] != frame.pts:
            return False
        self._at, self._frame = rank, frame
        return True


def _is_intra(frame: VideoFrame) -> bool:
    """False for a picture that needs others. A gradual refresh marks such pictures as keyframes: decoding that starts
    there gives wrong pictures, which the decoder does not tell."""
    return frame.pict_type in (PictureType.NONE, PictureType.I)
