"""The few types that travel between rooms, and the letters used for shapes everywhere.

Shape letters: B examples, M media (clips) of a batch, F frames of all media together, T frames of one clip, P patches
of one frame, N visual tokens of one clip after aggregation, S positions of a sequence (text and visual), D width of the
LLM, Dv width of the vision backbone, R resolution in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""Label of a position that is not learned (the value PyTorch's cross entropy skips)."""

VISUAL_SLOT = -200
"""Value in `input_ids` at a position that a visual embedding fills. No tokenizer has a negative id."""

Layout = Literal["after-bos", "inline"]
Role = Literal["human", "gpt"]


@dataclass(frozen=True)
class ImageSpec:
    """How pixels must be prepared for a vision backbone.

    resolution: side R of the square input, pixels. mean, std: per channel, of values in [0, 1]; also for a backbone of
    several towers (the first tower's, used for the letterbox colour). interpolation: "bicubic", "bilinear", "nearest".
    crop_pct: share of the resized image that the centre crop of `resize-crop` keeps (1.0: shortest side becomes R).
    """

    resolution: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. `text` may hold `<image>`/`<video>` placeholders in human turns."""

    role: Role
    text: str


@dataclass(frozen=True)
class Medium:
    """One clip of a record: an image file, a video file, or an ordered list of frame files.

    paths: one path for an image or a video, one per frame for "frames"; absolute, already confined to the media root.
    num_frames: frames that the row itself asks for (`num_frames_per_video`); None means the model's num_frames. It is
    None for an image and for "frames", whose count is len(paths).
    """

    kind: Literal["image", "video", "frames"]
    paths: tuple[str, ...]
    num_frames: int | None = None


@dataclass(frozen=True)
class Record:
    """A checked row of an annotation file. `source` says where it stands ("train.json, row 12") for error texts."""

    id: str
    media: tuple[Medium, ...]
    turns: tuple[Turn, ...]
    source: str


@dataclass(frozen=True)
class Skip:
    """A sample that was left out (`--dataset.on_error skip`), as written to skipped.jsonl."""

    id: str
    source: str
    reason: str
    epoch: int
    index: int


@dataclass
class CachedFeatures:
    """The clips of an example or batch whose features a cache has; the others come as frames.

    features: [F, P, Dv], frames of all clips that it has, in order, in the precision of the cache; None: of no clip.
    keys: for each clip None when it is in `features`, else the name under which its features are to be kept ("": not).
    damaged: entries of the cache that were found damaged and are computed again.
    """

    features: torch.Tensor | None
    keys: tuple[str | None, ...]
    damaged: int = 0

    @staticmethod
    def join(parts: Sequence[CachedFeatures]) -> CachedFeatures:
        """The clips of several examples, in their order."""
        import torch

        known = [part.features for part in parts if part.features is not None]
        return CachedFeatures(
            torch.cat(known) if known else None,
            tuple(key for part in parts for key in part.keys),
            sum(part.damaged for part in parts),
        )

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> CachedFeatures:
        """The same with another tensor of features."""
        return self if self.features is None else replace(self, features=change(self.features))


@dataclass
class Example:
    """One tokenized sample with its pixels; its length is exact before any device is touched.

    id: never empty; a filler, which keeps processes in step and counts nowhere, has none ("").
    input_ids: int64 [S], VISUAL_SLOT where a visual embedding goes (sum of N over its media). labels: int64 [S].
    frames: uint8 [F, 3, R, R], F = sum(frames_per_medium), possibly 0, in any order of memory (`resize` leaves the
    colours of a pixel together). frames_per_medium: T of each clip, in the order in which their slots stand. skipped:
    samples that this one replaces. cache: with a feature cache, which clips it has; `frames` then holds those of the
    others alone.
    """

    id: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    frames: torch.Tensor
    frames_per_medium: tuple[int, ...]
    skipped: tuple[Skip, ...] = ()
    cache: CachedFeatures | None = None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass
class Batch:
    """Examples in rows, one a row (padded) or all in one row (packed).

    input_ids, labels, position_ids: int64 [B, S]. Positions restart at 0 with each example of a row; padding at the end
    of a row has label IGNORE_INDEX. The first label of each example is IGNORE_INDEX, so no example predicts another.
    frames: uint8 [F, 3, R, R]; frames_per_medium: T of each of the M clips, in row-major order of their slots.
    packed: some row holds more than one example (then position_ids carry the borders).
    ids: of the examples, without fillers. useful: positions of these. skipped: what was left out on the way. lengths:
    of all examples, in positions. echo: another process works on the same batch and counts it (context parallelism).
    cache: with a feature cache, which clips it has; `frames` then holds those of the others alone.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    frames: torch.Tensor
    frames_per_medium: tuple[int, ...]
    packed: bool
    ids: tuple[str, ...] = ()
    useful: int = 0
    skipped: tuple[Skip, ...] = field(default=())
    echo: bool = False
    lengths: tuple[int, ...] = ()
    cache: CachedFeatures | None = None

    @property
    def positions(self) -> int:
        """Positions that the LLM computes, padding among them; `useful` of them hold examples."""
        return 0 if self.echo else self.input_ids.numel()

    @property
    def num_frames(self) -> int:
        """F, frames of all media."""
        return 0 if self.echo else sum(self.frames_per_medium)

    @property
    def num_label_tokens(self) -> int:
        """Positions whose next token is learned."""
        return 0 if self.echo else int((self.labels[:, 1:] != IGNORE_INDEX).sum())

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("input_ids", "labels", "position_ids", "frames")
        }
        cache = self.cache and self.cache.map(lambda features: features.to(device, non_blocking=non_blocking))
        return Batch(**{**self.__dict__, **moved, "cache": cache})

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (the DataLoader calls this on CUDA machines)."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("input_ids", "labels", "position_ids", "frames")}
        cache = self.cache and self.cache.map(lambda features: features.pin_memory())
        return Batch(**{**self.__dict__, **pinned, "cache": cache})
