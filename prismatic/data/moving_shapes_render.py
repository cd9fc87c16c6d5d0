"""moving-shapes: the planned clips as files in the WebVid layout.

    root/train.csv, val.csv      videoid, contentUrl, duration, page_dir, name (the caption)
    root/train.json, val.json    annotations, one question and answer a clip
    root/videos/<page_dir>/<videoid>.<mp4|webm|avi|mkv|mov>
    root/render.json             what was asked for and the size of each file; written last

Every file is written under a temporary name and renamed, so a render that was stopped goes on where it was, and a
finished one returns at once. The same seed and versions of PyAV give the same bytes.
"""

import csv
import io
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from prismatic.data import moving_shapes_draw as draw
from prismatic.data.moving_shapes import QUESTION, ClipPlan, Split, caption, plan

log = logging.getLogger(__name__)

NUM_TRAIN, NUM_VAL = 3200, 200
RECORD = "render.json"
VERSION = 1  # raise it when the pixels, the plan or the encoder settings change: older renders are then done again
_CHUNK = 20  # clips per task of a worker
_SPLITS: tuple[Split, ...] = ("train", "val")
_X264 = ("libx264", {"preset": "veryfast", "crf": "20"})
# Extension -> encoder and its options. One thread each: threads change the bytes, and the workers fill the cores.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "mp4": _X264,
    "mov": _X264,
    "mkv": _X264,
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0"}),
    "avi": ("mpeg4", {"flags": "+qscale", "global_quality": "236"}),  # 2 * 118: a quantizer of 2
}


class RenderError(ValueError):
    """The dataset could not be written; the text names the place and what to do."""


@dataclass(frozen=True)
class RenderSummary:
    """What a call of `render` left under `root` and did itself."""

    root: Path
    num_train: int
    num_val: int
    num_rendered: int
    num_bytes: int


def render(
    root: Path, seed: int, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL, num_workers: int = 2
) -> RenderSummary:
    """Write the dataset of `seed` under `root` (see the module's text for the layout), with a progress bar.

    Files of an interrupted render with the same settings are kept; those of other settings are replaced.
    Raises RenderError where `root` cannot be written, the disk is full or a worker dies.
    """
    root = Path(root)
    clips = plan(seed, num_train, num_val)
    settings = {"version": VERSION, "seed": seed, "num_train": num_train, "num_val": num_val}
    try:
        todo = _missing(root, clips, settings)
        if todo:
            _write(root / RECORD, json.dumps({**settings, "complete": False}))
            for page_dir in sorted({clip.page_dir for clip in todo}):
                (root / "videos" / page_dir).mkdir(parents=True, exist_ok=True)
            _render_all(root, todo, max(1, num_workers))
        sizes = {clip.path: (root / clip.path).stat().st_size for clip in clips}
        if todo or not all((root / f"{split}{kind}").exists() for split in _SPLITS for kind in (".csv", ".json")):
            for split in _SPLITS:
                _write_tables(root, split, [clip for clip in clips if clip.split == split])
            _write(root / RECORD, json.dumps({**settings, "complete": True, "files": sizes}))
    except OSError as error:
        raise RenderError(
            f"moving-shapes could not be written under {root}: {error.strerror or error} "
            f"({error.filename or root}). It needs about 30 MB and write permission; give another --root_dir, or make "
            "room and run the same command again: finished clips are kept"
        ) from error
    return RenderSummary(root, num_train, num_val, len(todo), sum(sizes.values()))


def _missing(root: Path, clips: list[ClipPlan], settings: dict[str, int]) -> list[ClipPlan]:
    """The clips that are not there yet. Leftovers of other settings count as not there and are deleted."""
    record = _read_record(root / RECORD)
    if record is not None and any(record.get(key) != value for key, value in settings.items()):
        log.warning("%s holds moving-shapes of other settings; rendering it again", root)
        _delete_clips(root)
        record = None
    sizes = (record or {}).get("files") or {}
    todo = []
    for clip in clips:
        path = root / clip.path
        size = path.stat().st_size if record is not None and path.is_file() else 0
        if size == 0 or size != sizes.get(clip.path, size):
            todo.append(clip)
    return todo


def _read_record(path: Path) -> dict | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) else None


def _delete_clips(root: Path) -> None:
    """Remove clips that a render made (seven digits, a page folder of three) and nothing else."""
    for extension in _ENCODERS:
        for path in root.glob(f"videos/[0-9][0-9][0-9]/{'[0-9]' * 7}.{extension}"):
            path.unlink()
    for split in _SPLITS:
        for kind in ("csv", "json"):
            (root / f"{split}.{kind}").unlink(missing_ok=True)


def _render_all(root: Path, todo: list[ClipPlan], num_workers: int) -> None:
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]
    with tqdm(total=len(todo), desc="rendering moving-shapes", unit="clip") as progress:
        for count in _completed(root, chunks, min(num_workers, len(chunks))):
            progress.update(count)


def _completed(root: Path, chunks: list[list[ClipPlan]], num_workers: int) -> Iterator[int]:
    """Render the chunks, in this process or in workers; yields the number of clips of each finished one."""
    if num_workers == 1:
        for chunk in chunks:
            yield _render_chunk(root, chunk)
        return
    # Spawned, not forked: the caller may have threads (torch, tqdm), and a fork with those can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_ignore_interrupt)
    futures: list[Future[int]] = [pool.submit(_render_chunk, root, chunk) for chunk in chunks]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise RenderError(
            "a worker that rendered moving-shapes was killed (out of memory?). Run the same command again: it goes "
            "on with what is missing; --num_workers 1 needs the least memory"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole process group; the parent alone answers it, and the workers finish their chunk."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render_chunk(root: Path, chunk: list[ClipPlan]) -> int:
    for clip in chunk:
        _write_bytes(root / clip.path, encode(draw.draw_clip(clip), clip.extension))
    return len(chunk)


def encode(frames: NDArray[np.uint8], extension: str) -> bytes:
    """A video file of RGB frames uint8 [T,H,W,3] at draw.FPS, in the container and codec of `extension`."""
    codec, options = _ENCODERS[extension]
    buffer = io.BytesIO()
    container_format = {"mkv": "matroska"}.get(extension, extension)
    # bitexact: no random ids, dates or version strings in the container.
    with av.open(buffer, "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=draw.FPS, options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, draw.FPS)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, draw.FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _write_tables(root: Path, split: Split, clips: list[ClipPlan]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
    rows = []
    for clip in clips:
        seconds = round(draw.num_frames(clip) / draw.FPS)
        answer = caption(clip.attributes)
        table.writerow([clip.video_id, clip.path, f"PT00H00M{seconds:02d}S", clip.page_dir, answer])
        conversations = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": answer}]
        rows.append({"id": clip.video_id, "videos": [clip.path], "conversations": conversations})
    _write(root / f"{split}.csv", text.getvalue())
    _write(root / f"{split}.json", json.dumps(rows, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_bytes(path, text.encode("utf-8"))


def _write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary name and rename: a reader sees the whole file or none, also after a kill."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
