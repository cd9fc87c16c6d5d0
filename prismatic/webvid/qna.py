"""`webvid.py qna`: typed question files -> training rows, a chosen number of each type for each video."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from prismatic.conf.webvid_rows import QnaConfig
from prismatic.webvid.catalog import read_catalog
from prismatic.webvid.files import read_rows, read_text, write_rows
from prismatic.webvid.rows import listed, matching_files, share
from prismatic.webvid.shard_rows import is_shard_folder, shard_names
from prismatic.webvid.texts import Texts
from prismatic.webvid.weave import below, read_frame_folder

_TYPE = re.compile(r"video_questions_([A-Za-z]+)")


@dataclass(frozen=True)
class Entry:
    """One question about one video."""

    video_id: str
    kind: str
    question: str
    answer: str


def qna(cfg: QnaConfig) -> str:
    """Write cfg.output and return a summary with the coverage. Raises ValueError for input that cannot be used."""
    cfg.validate()
    found = read_catalog(cfg.catalog)
    usable = found.usable()
    rows_of = dict(zip(found.ids.take(usable), usable.tolist(), strict=True))
    skipped: Counter[str] = Counter()
    by_video: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    files = matching_files(cfg.questions, "--questions")
    for file in tqdm(files, unit="file", desc="qna"):
        for entry in _entries(file, rows_of, skipped):
            if not cfg.types or entry.kind in cfg.types:
                by_video[entry.video_id][entry.kind].append(entry)
    kinds = Counter(kind for kinds in by_video.values() for kind in kinds)
    unknown = [kind for kind in cfg.types if kind not in kinds]
    if unknown or not by_video:
        raise ValueError(
            f"--questions {cfg.questions}: no usable entry"
            + (f" of type {', '.join(unknown)}" if unknown else "")
            + f" (left out: {_told(skipped) or 'nothing'})"
        )
    if cfg.frames is None:
        media = _video_of(cfg, found.videos, found.paths, rows_of)
    elif is_shard_folder(cfg.frames):
        media = _shards_of(cfg, found.ids, rows_of)
    else:
        media = _frames_of(cfg)
    counts: Counter[str] = Counter()
    written = write_rows(cfg.output, _rows(cfg, by_video, list(rows_of), media, counts))
    per_type = ", ".join(f"{counts[kind]:,} {kind} (of {videos:,} videos)" for kind, videos in sorted(kinds.items()))
    lines = [
        f"{cfg.output}: {written:,} rows about {share(len(by_video), len(rows_of))} usable videos of the catalog",
        f"  {per_type}",
        *([f"  entries left out: {_told(skipped)}"] if skipped else []),
    ]
    return "\n".join(lines)


def _rows(
    cfg: QnaConfig,
    by_video: dict[str, dict[str, list[Entry]]],
    ids: list[str],
    media: Callable[[str], dict[str, Any]],
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(cfg.seed)
    videos = [video_id for video_id in ids if video_id in by_video]
    chosen = []
    for video_id in videos:
        for kind in sorted(by_video[video_id]):
            entries = by_video[video_id][kind]
            picked = sorted(rng.permutation(len(entries))[: cfg.per_type].tolist())
            chosen += [entries[i] for i in picked]
    for place in rng.permutation(len(chosen)).tolist():
        entry = chosen[place]
        counts[entry.kind] += 1
        yield {
            "id": entry.video_id,
            "type": entry.kind,
            **media(entry.video_id),
            "conversations": [
                {"from": "human", "value": f"<video>\n{entry.question}"},
                {"from": "gpt", "value": entry.answer},
            ],
        }


def _video_of(cfg: QnaConfig, videos: Path, paths: Sequence[str], rows_of: dict[str, int]) -> Callable[[str], Any]:
    prefix = below(videos, cfg.media_root or videos, "the catalog's videos")
    frames = {} if cfg.num_frames is None else {"num_frames_per_video": cfg.num_frames}
    return lambda video_id: {"videos": [prefix + paths[rows_of[video_id]]], **frames}


def _shards_of(cfg: QnaConfig, ids: Texts, rows_of: dict[str, int]) -> Callable[[str], Any]:
    assert cfg.frames is not None
    named = shard_names(cfg.frames, below(cfg.frames, cfg.media_root or cfg.frames, "--frames"), ids)
    return lambda video_id: {
        "videos": named(np.array([rows_of[video_id]]), [video_id]),
        "num_frames_per_video": cfg.num_frames,
    }


def _frames_of(cfg: QnaConfig) -> Callable[[str], Any]:
    assert cfg.frames is not None and cfg.num_frames is not None
    root, count = cfg.frames, cfg.num_frames
    prefix = below(root, cfg.media_root or root, "--frames")

    def columns(video_id: str) -> dict[str, Any]:
        files = read_frame_folder(root / video_id).uniform(count)
        return {"frames": [prefix + file.relative_to(root).as_posix() for file in files]}

    return columns


def _entries(file: Path, rows_of: dict[str, int], skipped: Counter[str]) -> Iterator[Entry]:
    match = _TYPE.search(file.stem)
    named = match[1] if match else file.stem
    for row in _read(file):
        video_id = _video_id(row, rows_of)
        question, answer = (" ".join(str(row.get(name) or "").split()) for name in ("question", "answer"))
        if video_id is None:
            skipped["about a video that the catalog cannot use"] += 1
        elif not question or not answer:
            skipped["without a question or an answer"] += 1
        else:
            yield Entry(video_id, str(row.get("type") or named), question, answer)


def _video_id(row: dict[str, Any], rows_of: dict[str, int]) -> str | None:
    """By video_id, or by the file: ID.mp4, or the frames ID/0000.png."""
    if "video_id" in row:
        return str(row["video_id"]) if str(row["video_id"]) in rows_of else None
    paths = row.get("file_paths")
    first = paths[0] if isinstance(paths, list) and paths else paths
    if not isinstance(first, str):
        return None
    path = PurePosixPath(first)
    return next((name for name in (path.stem, path.parent.name, path.name) if name in rows_of), None)


def _read(path: Path) -> list[dict[str, Any]]:
    """JSON, JSON lines, or a list as Python prints it (read as data, never run)."""
    if path.suffix in (".json", ".jsonl"):
        return read_rows(path, "--questions")
    text = read_text(path, "--questions")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        try:
            rows = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"--questions {path}: neither JSON nor a list as Python writes it ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"--questions {path}: expected a list of objects")
    return rows


def _told(skipped: Counter[str]) -> str:
    return listed([f"{count:,} {reason}" for reason, count in skipped.most_common()])
