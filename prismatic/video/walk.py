"""A place in an open video file from which frames are decoded onward. Owns the file handle, seeking and its proof."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import av

from prismatic.video.clip import MediaError
from prismatic.video.packets import AV_ERRORS, Packed

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DECODER = "pyav"

# FFmpeg guesses a format from content: a text file named .mp4 may be a playlist that opens other files and URLs.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi,flv,live_flv,asf,gif,mpegts,mpeg,mpegvideo,ogg,rm,swf,nut,ivf,dv,mxf,y4m,yuv4mpegpipe,h264,hevc,av1,obu,m4v,wtv,apng",
)
OPEN_OPTIONS = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}

_SEEK_BACK_SECONDS = (0.0, 2.0, 10.0)
"""How far before the keyframe a seek aims, one try after another: transport and program streams land late."""


class Walk:
    """Decodes one video stream onward. Raises MediaError when the file cannot be opened or has no video.

    threads: decoding threads, 0 for one per core.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int) -> None:
        self._path, self._threads = path, threads
        self._container: InputContainer | None = None
        self._backs = _SEEK_BACK_SECONDS
        self.stream: VideoStream
        self.open()

    @property
    def container(self) -> InputContainer:
        """The open file. Raises MediaError after `close`."""
        if self._container is None:
            raise MediaError(self._path, DECODER, "the clip was closed")
        return self._container

    def open(self) -> None:
        """Open the file, again if it is open, and stand at its start."""
        self.close()
        # An absolute path cannot be taken for a URL or a protocol ("concat:a.mp4"). Options of the container alone:
        # handed to the streams too, they crash FFmpeg 7 and 8.0 on FLV.
        self._container = av.open(
            os.path.abspath(self._path), container_options=OPEN_OPTIONS, metadata_errors="replace", timeout=(30.0, 30.0)
        )
        cover = av.stream.Disposition.attached_pic
        videos = [s for s in self._container.streams.video if not s.disposition & cover]
        if not videos:
            kinds = ", ".join(sorted({s.type for s in self._container.streams})) or "nothing"
            self.close()
            raise MediaError(self._path, DECODER, f"has no video stream (it holds: {kinds})")
        self.stream = videos[0]
        if self.stream.codec_context is None:
            self.close()
            raise MediaError(self._path, DECODER, "its codec is unknown")
        discard = getattr(av.stream, "Discard", None)  # since PyAV 18; without it audio is read and thrown away
        for other in self._container.streams:
            if discard is not None and other.index != self.stream.index:
                other.discard = discard.all
        # Frame threads, not slices: a damaged slice is then concealed as in a single thread.
        self.stream.codec_context.thread_type = "NONE" if self._threads == 1 else "AUTO"
        self.stream.codec_context.thread_count = self._threads
        self._stand(self._container.demux(self.stream))

    def close(self) -> None:
        """Close the file."""
        container, self._container = self._container, None
        if container is not None:
            self._packets: Iterator[Packet] = iter(())
            self._ready: deque[VideoFrame] = deque()
            container.close()

    def rewind(self, first: Packed | None) -> None:
        """Stand at the start of the file. first: its first packet, None when it has no time of its own."""
        if first is None or not self._land(first, first.pts, passing=False):
            self.open()

    def seek(self, key: Packed) -> bool:
        """Stand before the packet of a keyframe; False when the file cannot be sought to it.

        The packet itself is the proof: whatever the container's seeking does, decoding starts at that packet.
        """
        for place, back in enumerate(self._backs):
            if self._land(key, key.pts - int(back / self.stream.time_base), passing=True):
                self._backs = self._backs[place:]  # what was too near once is too near again
                return True
        return False

    def _land(self, packed: Packed, target: int, *, passing: bool) -> bool:
        """Seek to tick `target`, then stand before `packed`, if packets before it may be passed over."""
        try:
            self.container.seek(target, stream=self.stream)
            packets = self.container.demux(self.stream)
            for packet in packets:
                # The size too: a landing inside a packet gives its time to a torn rest of it.
                if (packet.pts, packet.size) == (packed.pts, packed.size):
                    self._stand(packets, packet)
                    return True
                late = packet.pts is None or (packet.is_keyframe and packet.pts > packed.pts)
                if late or not passing:
                    return False
        except AV_ERRORS:
            return False
        return False

    def _stand(self, packets: Iterator[Packet], *first: Packet) -> None:
        self._packets, self._ahead = packets, deque(first)
        self._ready, self._drained = deque(), False

    def next(
        self, wanted: Callable[[Packet], bool] | None = None, last: Callable[[Packet], bool] | None = None
    ) -> VideoFrame | None:
        """The next frame in order of showing, None at the end of the file.

        wanted: frames of packets for which it is false may be left out (they are when nothing else refers to them, and
        are then not decoded at all). None: every frame comes. Packets that the decoder refuses are passed over.
        last: a packet for which it is true counts as the last one of the file: its frame comes without waiting for
        those that might be shown before it, and after it `seek` or `rewind` is needed.
        """
        while not self._ready and not self._drained:
            packet = self._next_packet()
            self._drained = packet is None or (last is not None and last(packet))
            if packet is not None and not packet.size:
                continue
            context = self.stream.codec_context
            if packet is not None:
                context.skip_frame = "DEFAULT" if wanted is None or wanted(packet) else "NONREF"
            try:
                self._ready.extend(context.decode(packet))
                if packet is not None and self._drained:
                    self._ready.extend(context.decode(None))
            except AV_ERRORS:
                continue
        return self._ready.popleft() if self._ready else None

    def _next_packet(self) -> Packet | None:
        if self._ahead:
            return self._ahead.popleft()
        try:
            return next(self._packets, None)
        except AV_ERRORS:
            return None
