"""`webvid.py concat`: the clips of a row one after the other, as a video that any player plays."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from prismatic.conf.data import url_of
from prismatic.conf.webvid_rows import ConcatConfig
from prismatic.data.annotations import load_records
from prismatic.types import Medium, Record
from prismatic.video.clip import Clip
from prismatic.video.decode import MediaError, open_video
from prismatic.video.frame_folder import open_frames
from prismatic.video.images import read_image
from prismatic.webvid.extract import keep_settings
from prismatic.webvid.files import write_rows
from prismatic.webvid.rows import listed

log = logging.getLogger(__name__)

STILL_SECONDS = 2.0  # how long a picture is shown among clips
STILL_FPS = 1.0
SETTINGS = "concat.json"  # what the videos of a folder are made with
CHUNK = 32  # frames in memory at a time


def concat(cfg: ConcatConfig) -> str:
    """Write cfg.output and return a summary. Raises ValueError for input that cannot be used, or when nothing works."""
    cfg.validate()
    if not cfg.annotations.is_file():
        raise ValueError(f"--annotations {cfg.annotations}: no such file")
    records = load_records(cfg.annotations, url_of(cfg.media_root) or cfg.media_root)[: cfg.limit]
    with_media = [(place, record) for place, record in enumerate(records) if record.media]
    if not with_media:
        raise ValueError(f"--annotations {cfg.annotations}: none of its rows has a video or a picture")
    settings = {name: getattr(cfg, name) for name in ("what", "num_frames", "fps", "height")}
    keep_settings(cfg.output / SETTINGS, settings, empty=not any(cfg.output.glob("*.mp4")))
    with ThreadPoolExecutor(cfg.num_workers, thread_name_prefix="concat") as pool:
        bar = tqdm(total=len(with_media), unit="video", desc="concat")
        futures = [pool.submit(_make, record, place, cfg) for place, record in with_media]
        rows = []
        try:
            for future in futures:
                rows.append(future.result())
                bar.update()
        finally:
            bar.close()
            pool.shutdown(wait=True, cancel_futures=True)
    write_rows(cfg.output / "index.jsonl", rows)
    made, there = (sum(row["status"] == status for row in rows) for status in ("made", "there already"))
    broken = [row for row in rows if row["status"] not in ("made", "there already")]
    if len(broken) == len(rows):
        raise ValueError(f"no row could be shown; the first: {broken[0]['status']}")
    lines = [f"{cfg.output}: {made} videos made, {there} were there already; index.jsonl says what is asked of each"]
    if broken:
        lines.append(f"  skipped {len(broken)}: {listed([row['status'] for row in broken], 3)}")
    return "\n".join(lines)


def _make(record: Record, place: int, cfg: ConcatConfig) -> dict[str, Any]:
    """The row of index.jsonl; a broken medium is told in its status."""
    safe = re.sub(r"[^\w\-]+", "_", record.id)[:60].strip("_")
    path = cfg.output / f"{place:06d}-{safe}.mp4"
    row = {"file": path.name, "id": record.id, "media": [_name(medium) for medium in record.media]}
    row["conversations"] = [{"from": turn.role, "value": turn.text} for turn in record.turns]
    if path.is_file():
        return {**row, "status": "there already"}
    try:
        write_video(path, record, cfg)
    except (MediaError, OSError) as error:
        return {**row, "file": None, "status": f"{record.source}: {error}"}
    return {**row, "status": "made"}


def write_video(path: Path, record: Record, cfg: ConcatConfig) -> None:
    """H.264 in mp4, all clips in the shape of the first; a file under its name is whole.

    Raises MediaError for a clip that cannot be read, OSError for a file that cannot be written.
    """
    import av

    partial = path.with_name(f".{path.name}.partial")
    pieces = _pieces(record, cfg)
    fps, first = next(pieces)
    height, width = cfg.height // 2 * 2, max(16, round(first.shape[2] * cfg.height / first.shape[1] / 2) * 2)
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            # A frame of time 1/rate each: a clip of another rate is shown at this one, frame by frame.
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _, frames in itertools.chain([(fps, first)], pieces):
                for frame in frames:
                    picture = av.VideoFrame.from_ndarray(_fit(frame, width, height), format="rgb24")
                    container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _pieces(record: Record, cfg: ConcatConfig) -> Iterator[tuple[float, np.ndarray]]:
    """(frames a second, uint8 [T, H, W, 3]) of the clips one after the other, in pieces of at most CHUNK frames."""
    fps = cfg.fps
    for medium in record.media:
        if medium.kind == "image":
            fps = fps or (STILL_FPS if cfg.what == "frames" else 10.0)
            repeats = 1 if cfg.what == "frames" else max(1, round(STILL_SECONDS * fps))
            yield fps, np.repeat(read_image(medium.paths[0])[None], repeats, axis=0)
            continue
        with open_frames(medium.paths) if medium.kind == "frames" else open_video(medium.paths[0]) as clip:
            indices = _chosen(clip, medium, cfg)
            if fps is None:
                seen = cfg.what == "frames" or medium.kind == "frames"
                fps = STILL_FPS if seen else float(np.clip(clip.fps or 25.0, 1.0, 60.0))
            for start in range(0, len(indices), CHUNK):
                yield fps, clip.get(indices[start : start + CHUNK])


def _chosen(clip: Clip, medium: Medium, cfg: ConcatConfig) -> np.ndarray:
    if cfg.what == "clips" or medium.kind == "frames":
        return np.arange(len(clip))
    return np.linspace(0, len(clip) - 1, medium.num_frames or cfg.num_frames).astype(np.int64)


def _fit(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """The frame inside [height, width], its shape kept, black around it."""
    scale = min(width / frame.shape[1], height / frame.shape[0])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(Image.fromarray(frame).resize(size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas)


def _name(medium: Medium) -> str:
    more = f" and {len(medium.paths) - 1} more" if len(medium.paths) > 1 else ""
    return Path(medium.paths[0]).name + more
