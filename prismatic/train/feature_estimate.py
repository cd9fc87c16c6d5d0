"""What a feature cache needs and saves, measured on a few clips before anything starts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prismatic.data.feature_cache_entry import entry_bytes, read_entry, write_entry
from prismatic.data.feature_cache_notes import identify
from prismatic.data.feature_cache_reader import CachedReader
from prismatic.data.feature_cache_size import amount
from prismatic.types import Medium

MEASURED = 4


@dataclass
class Timing:
    """Means over the clips that were measured: wall seconds a clip, one process. frame: P and Dv of features."""

    clips: int
    frame: tuple[int, int]
    live: float
    fill: float
    read: float

    @property
    def break_even(self) -> float:
        """Epochs after which filling has paid for itself: 1 + what it costs / what an epoch saves."""
        return 1 + self.fill / max(self.live - self.read, 1e-9)


def estimate(
    reader: CachedReader,
    tower: nn.Module,
    media: Sequence[Medium],
    device: torch.device,
    *,
    total: int,
    epochs: int | None,
) -> list[str]:
    """Lines that say what the features of `media` take on disk, what an epoch saves, and when it has paid.

    media: distinct clips, all or some. total: about how many there are. epochs: of this run; None when it trains
    nothing. The cache is bound already. Broken clips are left out here: they are reported when read.
    """
    cache = reader.cache
    there = cache.num_entries()
    lines = [f"Features  {cache.group}: {there:,} entries there, {cache.dtype}"]
    if not media:
        return [f"{lines[0]}; these rows have no clips to keep"]
    try:
        timing = measure(reader, tower, media, device)
    except OSError as error:
        return [*lines, f"          what it saves cannot be measured: {error.strerror or error}"]
    if timing is None:
        return [*lines, "          what it saves cannot be measured: no clip of those tried can be read"]
    counts = [reader.read.count(medium) for medium in media]
    size = sum(entry_bytes((T, *timing.frame), cache.torch_dtype) for T in counts) / len(counts)
    needed, free = size * total, shutil.disk_usage(cache.root).free
    about = "" if total == len(media) else "up to "
    mean = sum(counts) / len(counts)
    frames = f"{mean:.3g} frame{'' if mean == 1 else 's'}"
    lines[0] += f"; {about}{total:,} clips of {frames} = {amount(needed)} (disk free {amount(free)})"
    used = cache.size.usage()[0]
    missing = max(0.0, needed - there * size)
    kept = total
    if cache.limit is not None and used + missing > cache.limit:
        room = max(0, int((cache.limit - used) // size))
        kept = min(total, there + room)
        lines.append(
            f"          the limit of {amount(cache.limit)} ({amount(used)} used) has room for {room:,} clips more; "
            "the others are decoded and encoded each time"
        )
    elif missing > free:
        kept = min(total, there + int(free // size))
        lines.append("          the disk has no room for all: when it is full, the others are encoded each time")
    saved = (timing.live - timing.read) * kept
    lines.append(
        f"          a clip takes {_seconds(timing.live)} to decode and encode, {_seconds(timing.read)} to read back "
        f"({timing.clips} measured, one process): {_seconds(max(0.0, saved))} less an epoch"
        + (f" with {kept:,} clips in it" if kept < total else "")
    )
    if timing.live <= timing.read:
        lines.append("          reading is not faster here: leave --dataset.feature_cache out")
    elif there < kept:
        later = "; this run has one, so only later runs gain" if epochs == 1 else ""
        lines.append(
            f"          filling adds {_seconds(timing.fill)} a clip once, paid for after {timing.break_even:.2f} epochs"
            f"{later}"
        )
    return lines


def measure(reader: CachedReader, tower: nn.Module, media: Sequence[Medium], device: torch.device) -> Timing | None:
    """Time decoding and encoding, storing and reading on MEASURED clips of `media`; None when all are broken.

    They are spread over the lengths of clips, so that their mean is about that of all, and over those of a length.
    Files are read past the page cache where the system allows it. Raises OSError when the cache cannot be written.
    """
    by_length = sorted(media, key=reader.read.count)
    chosen = [by_length[(2 * i + 1) * len(media) // (2 * MEASURED)] for i in range(MEASURED)]
    chosen = list(dict.fromkeys(chosen))
    probe = reader.cache.root / "partial" / f"measured-{os.uname().nodename}-{os.getpid()}"
    rows: list[tuple[float, float, float]] = []
    frame = (0, 0)
    for number, medium in enumerate([*chosen[:1], *chosen]):
        try:
            frame, *row = _measure_one(reader, tower, medium, device, probe)
        except ValueError:
            continue
        except FileNotFoundError:
            continue
        finally:
            probe.unlink(missing_ok=True)
        if number:  # the first one loads libraries
            rows.append(tuple(row))
    if not rows:
        return None
    means = [sum(values) / len(rows) for values in zip(*rows, strict=True)]
    return Timing(len(rows), frame, *means)


def _measure_one(
    reader: CachedReader, tower: nn.Module, medium: Medium, device: torch.device, probe: Path
) -> tuple[tuple[int, int], float, float, float]:
    """(P and Dv, live, fill, read) of one clip."""
    key = "0" * 40
    dtype = reader.cache.torch_dtype

    def live() -> torch.Tensor:
        frames = reader.read.read(medium, reader.rng)
        with torch.no_grad():
            return tower(frames.to(device)).to(dtype).cpu()

    def fill() -> Any:
        identify(medium, reader.cache.notes)
        return write_entry(probe, probe.with_name(f"{probe.name}-2"), key, features)

    seconds_live, features = _timed(live)
    seconds_fill, _ = _timed(fill)
    _drop(probe)

    def read() -> Any:
        identify(medium, reader.cache.notes)
        return read_entry(probe, key)

    seconds_read, _ = _timed(read)
    return (features.shape[1], features.shape[2]), seconds_live, seconds_fill, seconds_read


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def _drop(path: Path) -> None:
    """Take a file out of the page cache, where there is such a call: reading it back shall cost what it will."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
