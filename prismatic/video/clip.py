"""What every decoder gives back: a clip of numbered frames with their times. Owns checks and order, not decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import numpy as np

MAX_PIXELS = 89_478_485
"""Pixels of one picture above which a file is refused: 256 MiB of RGB, the limit at which Pillow suspects a bomb."""


class MediaError(ValueError):
    """A file cannot give the frames asked for. The text names the file, the decoder and the reason."""

    def __init__(self, source: object, decoder: str, reason: str) -> None:
        super().__init__(f"{source}: decoder '{decoder}': {reason}")
        self.source, self.decoder, self.reason = str(source), decoder, reason

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str, str]]:
        # A worker process sends the error to its parent: pickle calls the class with these, not with the joined text.
        return type(self), (self.source, self.decoder, self.reason)


class DecoderMissingError(ValueError):
    """The package of a decoder is not installed, or does not work here: no fault of the file. Says what to type."""


def check_size(source: object, decoder: str, width: int, height: int) -> None:
    """Raises MediaError when a picture has no area, or more than MAX_PIXELS."""
    if width <= 0 or height <= 0:
        raise MediaError(source, decoder, f"pictures have no area ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise MediaError(
            source,
            decoder,
            f"pictures of {width} x {height} = {width * height} pixels exceed the limit of {MAX_PIXELS}",
        )


class Clip(ABC):
    """Numbered frames of one video, folder or list of images.

    Attributes:
        source: the file or folder, as given.
        decoder: id of the decoder in use.
        timestamps: float64 [len], seconds at which frames are shown; the first is 0 (a folder's manifest may say more).
        fps: mean frames per second.
        width, height: pixels of a frame as shown, after rotation. Pixels are taken as square.
        keyframes: int64, ascending numbers of the frames that need no other to be decoded; None: all (pictures). Empty
            when the file does not say.
    """

    def __init__(
        self,
        source: object,
        decoder: str,
        *,
        timestamps: np.ndarray,
        fps: float,
        size: tuple[int, int],
        keyframes: np.ndarray | None = None,
    ) -> None:
        assert timestamps.dtype == np.float64 and timestamps.ndim == 1
        self.source, self.decoder = str(source), decoder
        self.timestamps, self.fps = timestamps, fps
        self.width, self.height = size
        self.keyframes = keyframes

    def __len__(self) -> int:
        return len(self.timestamps)

    @property
    def duration(self) -> float:
        """Seconds from the first frame until the last one has been shown for a mean frame time."""
        return float(self.timestamps[-1] - self.timestamps[0] + 1.0 / self.fps)

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames uint8 [T, H, W, 3] (RGB) at `indices`, in the order asked for; an index may come more than once.

        Raises IndexError for an index outside [0, len), MediaError when a frame cannot be decoded.
        """
        order = np.asarray(indices, dtype=np.int64).reshape(-1)
        frames = np.empty((len(order), self.height, self.width, 3), np.uint8)
        if not len(order):
            return frames
        if order.min() < 0 or order.max() >= len(self):
            raise IndexError(f"{self.source}: frames {order.tolist()} asked of a clip of {len(self)} frames")
        wanted, places = np.unique(order, return_inverse=True)
        done = 0
        for rank, frame in enumerate(self._read(wanted.tolist())):
            for place in np.flatnonzero(places == rank):
                frames[place] = frame
            done += 1
        assert done == len(wanted), f"{type(self).__name__} gave {done} frames for {len(wanted)}"
        return frames

    @abstractmethod
    def _read(self, indices: list[int]) -> Iterator[np.ndarray] | Iterable[np.ndarray]:
        """The frames [H, W, 3] of strictly ascending, valid indices, one by one."""

    def close(self) -> None:  # noqa: B027  most clips hold nothing open
        """Free the file. Further `get` calls are errors; closing twice is not. Nothing to do for a list of images."""

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.source!r}, {len(self)} frames, {self.fps:.3f} fps, "
            f"{self.width} x {self.height})"
        )
