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
from numpy.typing import NDArray
from tqdm import tqdm

from prismatic.conf.webvid import WeaveConfig
from prismatic.data.media_paths import MediaPathError, MediaRoot
from prismatic.data.weave import Shown, split_frames
from prismatic.video.images import IMAGE_EXTENSIONS
from prismatic.webvid.catalog import Catalog, read_catalog
from prismatic.webvid.clusters_file import Grouped, read_clusters_file
from prismatic.webvid.durations import read_durations
from prismatic.webvid.files import epoch_path, read_text, write_rows
from prismatic.webvid.forms import FORMS, is_as_asked
from prismatic.webvid.shard_rows import is_shard_folder, shard_names
from prismatic.webvid.texts import Rows

BATCH = 8192  # examples whose clips are Python objects at a time


@dataclass(frozen=True)
class FrameFolder:
    """Extracted frames of one video, in time. folder: below that of --frames. files: names; a manifest, where there is
    one, says which are whole.
    """

    folder: str
    files: tuple[str, ...]

    def uniform(self, count: int) -> list[str]:
        """Paths below the folder of --frames of `count` of the frames at even distances, first and last included; of
        a shorter folder some come twice.
        """
        indices = np.linspace(0, len(self.files) - 1, count).astype(int)
        return [f"{self.folder}/{self.files[i]}" for i in indices.tolist()]


def weave(cfg: WeaveConfig) -> str:
    """Write cfg.output (or one file an epoch) and return a summary. Raises ValueError for input that cannot be used."""
    cfg.validate()
    FORMS.get(cfg.form)
    files = cfg.clusters if isinstance(cfg.clusters, list) else [cfg.clusters]
    found = read_catalog(cfg.catalog)
    clips = Clips(found, read_durations(cfg.catalog), _names(cfg, found))
    clusterings = [read_clusters(file, found, cfg.catalog) for file in files]
    lines = []
    for epoch in range(cfg.epochs):
        clusters = clusterings[epoch % len(clusterings)]
        sizes = np.unique(clusters.sizes).tolist()
        for size in sizes:
            split_frames(cfg.total_frames, size)
        output = epoch_path(cfg.output, epoch, cfg.epochs)
        other = Others()
        count = write_rows(output, _examples(cfg, clips, clusters, epoch, other))
        budgets = "; ".join(f"{size} videos of {_told(split_frames(cfg.total_frames, size))} frames" for size in sizes)
        lines.append(f"{output}: {count} examples ({cfg.form}), {cfg.total_frames} frames each: {budgets}")
        if other.count:
            lines.append(f"  {other.count} of them have captions that {cfg.form} cannot ask about, and ask otherwise")
    return "\n".join(lines)


@dataclass
class Others:
    """How many examples another form had to ask."""

    count: int = 0


NamesOf = Callable[[Rows, list[str]], list[str]]
"""(rows of the catalog, their ids) -> what each clip is called in an annotation row."""


@dataclass(frozen=True)
class Clips:
    """The catalog's clips. durations: seconds, NaN where unknown [N]."""

    catalog: Catalog
    durations: NDArray[np.float32]
    names: NamesOf

    def of(self, rows: Rows) -> tuple[list[str], list[str], list[str], list[float]]:
        """(ids, captions, names, durations) of some rows as Python objects."""
        ids = list(self.catalog.ids.take(rows))
        return ids, list(self.catalog.captions.take(rows)), self.names(rows, ids), self.durations[rows].tolist()


@dataclass(frozen=True)
class Clusters(Grouped):
    """rows: of the catalog, cluster after cluster, [n]. ends: where each cluster ends in them, [G]."""

    rows: Rows
    ends: Rows


def read_clusters(path: Path, found: Catalog, catalog: Path) -> Clusters:
    """Clusters in the order of the file. Raises ValueError for ids that the catalog cannot use."""
    file = read_clusters_file(path)
    rows = found.find(file.ids)
    unusable = np.flatnonzero(rows < 0)
    if len(unusable):
        raise ValueError(
            f"--clusters {path}: {len(unusable)} of its videos are not usable in --catalog {catalog} (no such id, or a "
            f"status other than ok), the first: {', '.join(file.ids.take(unusable[:5]))}"
        )
    return Clusters(rows, file.ends)


def _examples(
    cfg: WeaveConfig, clips: Clips, clusters: Clusters, epoch: int, other: Others
) -> Iterator[dict[str, Any]]:
    """Rows of one epoch: clusters in a drawn order, each with its videos in a drawn order."""
    form = FORMS.get(cfg.form)
    columns = _frame_columns(cfg) if cfg.frames is not None and not is_shard_folder(cfg.frames) else _video_columns
    rng = np.random.default_rng([cfg.seed, epoch])
    order = rng.permutation(len(clusters.ends))
    sizes = clusters.sizes
    with tqdm(total=len(order), unit="example", desc=f"weave epoch {epoch}") as bar:
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            ends = clusters.ends[places]
            spans = [clusters.rows[end - size : end] for end, size in zip(ends, sizes[places], strict=True)]
            ids, captions, names, durations = clips.of(np.concatenate(spans))
            first = 0
            for size in sizes[places].tolist():
                drawn = (first + rng.permutation(size)).tolist()
                frames = split_frames(cfg.total_frames, size)
                first += size
                shown = [
                    Shown(captions[i], n, None if durations[i] != durations[i] else durations[i])
                    for i, n in zip(drawn, frames, strict=True)
                ]
                question, answer = form(shown, cfg.prompt, rng)
                other.count += not is_as_asked(cfg.form, question)
                media, placeholders = columns([names[i] for i in drawn], frames)
                yield {
                    "id": ", ".join([ids[i] for i in drawn]),
                    **media,
                    "conversations": [
                        {"from": "human", "value": f"{placeholders}{question}"},
                        {"from": "gpt", "value": answer},
                    ],
                }
            bar.update(len(places))


def _names(cfg: WeaveConfig, found: Catalog) -> NamesOf:
    if cfg.frames is None:
        prefix = below(found.videos, cfg.media_root or found.videos, "the catalog's videos")
        return lambda rows, _: [prefix + path for path in found.paths.take(rows)]
    if is_shard_folder(cfg.frames):
        return shard_names(cfg.frames, below(cfg.frames, cfg.media_root or cfg.frames, "--frames"), found.ids)
    return lambda _, ids: ids


def _video_columns(names: list[str], frames: list[int]) -> tuple[dict[str, Any], str]:
    """(columns of a row, placeholders that open its question)."""
    even = frames[0] == frames[-1]  # the first ones have one more, or all are even
    return {"videos": names, "num_frames_per_video": frames[0] if even else frames}, "<video>\n" * len(names)


def _frame_columns(cfg: WeaveConfig) -> Callable[[list[str], list[int]], tuple[dict[str, Any], str]]:
    assert cfg.frames is not None
    prefix, root = below(cfg.frames, cfg.media_root or cfg.frames, "--frames"), MediaRoot(cfg.frames)

    def columns(names: list[str], frames: list[int]) -> tuple[dict[str, Any], str]:
        files = [f for i, n in zip(names, frames, strict=True) for f in read_frame_folder(root, i).uniform(n)]
        return {"frames": [prefix + file for file in files]}, "<video>\n"

    return columns


def read_frame_folder(root: MediaRoot, clip_id: str) -> FrameFolder:
    """The frames of one video below the folder of --frames. Raises ValueError when its own folder is missing, empty,
    unlike its manifest.json, or leads elsewhere.
    """
    try:
        folder = Path(root.resolve(clip_id))
    except MediaPathError as error:
        raise ValueError(f"--frames {root.root}: the id {clip_id!r} leads out of it, by itself or by a link") from error
    if not folder.is_dir():
        raise ValueError(f"--frames: {folder} is missing; every video of the clusters needs a folder of frames")
    names = sorted(
        (e.name for e in os.scandir(folder) if Path(e.name).suffix.lower() in IMAGE_EXTENSIONS),
        key=lambda n: (len(n), n),
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
        raise ValueError(f"--frames: {folder} holds no picture ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    return FrameFolder(folder.relative_to(root.root).as_posix(), tuple(names))


def below(folder: Path, root: Path, name: str) -> str:
    """What to put before a path relative to `folder` so that it is relative to `root`."""
    inner, outer = folder.resolve(), root.resolve()
    if not inner.is_relative_to(outer):
        raise ValueError(f"--media_root {root} does not hold {name} ({inner}); training could not reach them from it")
    prefix = inner.relative_to(outer).as_posix()
    return "" if prefix == "." else prefix + "/"


def _told(frames: list[int]) -> str:
    return f"{frames[0]}" if len(set(frames)) == 1 else " + ".join(map(str, frames))
