"""`webvid.py weave`: clusters and a catalog -> annotation rows that show several videos each.

Owns the frame budget, the order of videos and rows, and the paths; what is asked and answered is a form of FORMS.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prismatic.conf.webvid import WeaveConfig
from prismatic.data.weave import Shown, split_frames
from prismatic.webvid.catalog import Catalog, read_catalog
from prismatic.webvid.durations import read_durations
from prismatic.webvid.files import epoch_path, iter_rows, read_text, write_rows
from prismatic.webvid.forms import FORMS
from prismatic.webvid.shard_rows import is_shard_folder, shard_rows

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class FrameFolder:
    """Extracted frames of one video, in time. files: names; a manifest, where there is one, says which are whole."""

    folder: Path
    files: tuple[str, ...]

    def uniform(self, count: int) -> list[Path]:
        """`count` of the frames at even distances, first and last included; of a shorter folder some come twice."""
        indices = np.linspace(0, len(self.files) - 1, count).astype(int)
        return [self.folder / self.files[i] for i in indices.tolist()]


def weave(cfg: WeaveConfig) -> str:
    """Write cfg.output (or one file an epoch) and return a summary. Raises ValueError for input that cannot be used."""
    cfg.validate()
    FORMS.get(cfg.form)
    files = cfg.clusters if isinstance(cfg.clusters, list) else [cfg.clusters]
    found = read_catalog(cfg.catalog)
    rows_of = found.usable()
    durations = read_durations(cfg.catalog)
    clusterings = [read_clusters(file, rows_of, cfg.catalog) for file in files]
    lines = []
    for epoch in range(cfg.epochs):
        clusters = clusterings[epoch % len(clusterings)]
        sizes = sorted({len(cluster) for cluster in clusters})
        for size in sizes:
            split_frames(cfg.total_frames, size)
        output = epoch_path(cfg.output, epoch, cfg.epochs)
        count = write_rows(output, _examples(cfg, found, rows_of, durations, clusters, epoch))
        budgets = "; ".join(f"{size} videos of {_told(split_frames(cfg.total_frames, size))} frames" for size in sizes)
        lines.append(f"{output}: {count} examples ({cfg.form}), {cfg.total_frames} frames each: {budgets}")
    return "\n".join(lines)


def read_clusters(path: Path, rows_of: dict[str, int], catalog: Path) -> list[list[str]]:
    """Ids of each cluster in the order of the file. Raises ValueError for ids that the catalog cannot use."""
    clusters: dict[str, list[str]] = {}
    unusable: list[str] = []
    for number, row in enumerate(iter_rows(path, "--clusters"), start=1):
        if "video_id" not in row or "cluster" not in row:
            raise ValueError(f"--clusters {path}: row {number} lacks video_id or cluster")
        video_id = str(row["video_id"])
        if video_id not in rows_of:
            unusable.append(video_id)
        clusters.setdefault(str(row["cluster"]), []).append(video_id)
    if unusable:
        raise ValueError(
            f"--clusters {path}: {len(unusable)} of its videos are not usable in --catalog {catalog} (no such id, or a "
            f"status other than ok), the first: {', '.join(unusable[:5])}"
        )
    if not clusters:
        raise ValueError(f"--clusters {path} is empty")
    return list(clusters.values())


def _examples(
    cfg: WeaveConfig,
    found: Catalog,
    rows_of: dict[str, int],
    durations: list[float | None],
    clusters: list[list[str]],
    epoch: int,
) -> Iterator[dict[str, Any]]:
    """Rows of one epoch: clusters in a drawn order, each with its videos in a drawn order."""
    form = FORMS.get(cfg.form)
    rng = np.random.default_rng([cfg.seed, epoch])
    media = _frame_rows(cfg) if cfg.frames is not None else _video_rows(cfg, found, rows_of)
    for place in tqdm(rng.permutation(len(clusters)).tolist(), unit="example", desc=f"weave epoch {epoch}"):
        ids = clusters[place]
        ids = [ids[i] for i in rng.permutation(len(ids)).tolist()]
        frames = split_frames(cfg.total_frames, len(ids))
        rows = [rows_of[i] for i in ids]
        shown = [Shown(found.captions[r], n, durations[r]) for r, n in zip(rows, frames, strict=True)]
        question, answer = form(shown, cfg.prompt, rng)
        columns, placeholders = media(ids, frames)
        yield {
            "id": ", ".join(ids),
            **columns,
            "conversations": [
                {"from": "human", "value": f"{placeholders}{question}"},
                {"from": "gpt", "value": answer},
            ],
        }


MediaColumns = Callable[[list[str], list[int]], tuple[dict[str, Any], str]]
"""(ids, frames of each) -> (columns of the row, placeholders that open its question)."""


def _video_rows(cfg: WeaveConfig, found: Catalog, rows_of: dict[str, int]) -> MediaColumns:
    prefix = below(found.videos, cfg.media_root or found.videos, "the catalog's videos")

    def columns(ids: list[str], frames: list[int]) -> tuple[dict[str, Any], str]:
        videos = [prefix + found.paths[rows_of[i]] for i in ids]
        even = len(set(frames)) == 1
        return {"videos": videos, "num_frames_per_video": frames[0] if even else frames}, "<video>\n" * len(ids)

    return columns


def _frame_rows(cfg: WeaveConfig) -> MediaColumns:
    assert cfg.frames is not None
    if is_shard_folder(cfg.frames):
        return shard_rows(cfg.frames, below(cfg.frames, cfg.media_root or cfg.frames, "--frames"))
    root = cfg.frames
    prefix = below(root, cfg.media_root or root, "--frames")

    def columns(ids: list[str], frames: list[int]) -> tuple[dict[str, Any], str]:
        files = [f for i, n in zip(ids, frames, strict=True) for f in read_frame_folder(root / i).uniform(n)]
        return {"frames": [prefix + file.relative_to(root).as_posix() for file in files]}, "<video>\n"

    return columns


def read_frame_folder(folder: Path) -> FrameFolder:
    """The frames of one video. Raises ValueError when the folder is missing, empty, or unlike its manifest.json."""
    if not folder.is_dir():
        raise ValueError(f"--frames: {folder} is missing; every video of the clusters needs a folder of frames")
    names = sorted(
        (e.name for e in os.scandir(folder) if e.name.lower().endswith(FRAME_SUFFIXES)), key=lambda n: (len(n), n)
    )
    manifest = folder / "manifest.json"
    if manifest.is_file():
        try:
            indices = json.loads(read_text(manifest, "--frames"))["indices"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"--frames: {manifest} does not list the indices of its frames ({error})") from error
        if len(indices) != len(names):
            raise ValueError(f"--frames: {manifest} lists {len(indices)} frames, the folder holds {len(names)}")
    if not names:
        raise ValueError(f"--frames: {folder} holds no .png or .jpg file")
    return FrameFolder(folder, tuple(names))


def below(folder: Path, root: Path, name: str) -> str:
    """What to put before a path relative to `folder` so that it is relative to `root`."""
    inner, outer = folder.resolve(), root.resolve()
    if not inner.is_relative_to(outer):
        raise ValueError(f"--media_root {root} does not hold {name} ({inner}); training could not reach them from it")
    prefix = inner.relative_to(outer).as_posix()
    return "" if prefix == "." else prefix + "/"


def _told(frames: list[int]) -> str:
    return f"{frames[0]}" if len(set(frames)) == 1 else " + ".join(map(str, frames))
