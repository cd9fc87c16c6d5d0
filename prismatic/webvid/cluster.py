"""`webvid.py cluster`: videos into clusters of exactly L, by a method of METHODS.

Owns who takes part, what happens to the remainder, and the file. The methods see rows of a matrix, never files.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic.conf.webvid import ClusterConfig
from prismatic.webvid.catalog import read_catalog
from prismatic.webvid.files import epoch_path, read_text, write_rows
from prismatic.webvid.methods import LEFT_OUT, METHODS, Labels, Videos, random_clusters
from prismatic.webvid.quantised import Rows, Vectors, cohesion, cohesion_bound, cohesion_floor

__all__ = ["LEFT_OUT", "METHODS", "Videos", "cluster", "read_embeddings", "read_videos"]

log = logging.getLogger(__name__)

LISTED = 20  # videos left out that the summary names


def cluster(cfg: ClusterConfig) -> str:
    """Write cfg.output (or one file an epoch) and return a summary. Raises ValueError for input that cannot be used."""
    cfg.validate()
    method = METHODS.get(cfg.method)
    videos = read_videos(cfg)
    size, count = cfg.videos_per_cluster, len(videos.ids)
    if count < size:
        raise ValueError(f"--videos_per_cluster {size} is more than the {count} usable videos")
    lines = []
    for epoch in range(cfg.epochs):
        # One epoch uses the seed as it is, so that `--epochs 1` is what anyone would compute from --seed.
        labels = method(videos, size, cfg.seed + epoch)
        output = epoch_path(cfg.output, epoch, cfg.epochs)
        order = np.argsort(labels, kind="stable")
        members = order[labels[order] != LEFT_OUT]
        write_rows(
            output,
            (
                {"video_id": videos.ids[i], "caption": videos.captions[i], "cluster": str(labels[i])}
                for i in members.tolist()
            ),
        )
        left_out = [videos.ids[i] for i in np.flatnonzero(labels == LEFT_OUT).tolist()]
        lines.append(f"{output}: {len(members) // size} clusters of exactly {size} from {count} videos ({cfg.method})")
        lines += _measured(videos, labels, size, cfg)
        if left_out:
            more = "" if len(left_out) <= LISTED else f" and {len(left_out) - LISTED} more"
            named = ", ".join(left_out[:LISTED])
            lines.append(f"  left out, {count} mod {size} = {len(left_out)}: {named}{more}")
    return "\n".join(lines)


def _measured(videos: Videos, labels: Labels, size: int, cfg: ClusterConfig) -> list[str]:
    """Cohesion in look, and in words where the method looks at them, beside what chance gives and what can be had."""
    if size == 1:
        return []
    kinds: list[tuple[str, Vectors]] = []
    if videos.embeddings is not None:
        kinds.append(("look", videos.looks))
    if cfg.method in ("caption", "hybrid", "hard"):
        kinds.append(("caption", videos.words))
    chance = random_clusters(videos, size, cfg.seed)
    lines = []
    for name, vectors in kinds:
        told = f"{cohesion(vectors, labels):.4f}, of random clusters {cohesion(vectors, chance):.4f}"
        told += f", at most about {cohesion_bound(vectors, size, cfg.seed):.4f}"
        told += f", at least {cohesion_floor(vectors):.4f}" if cfg.method == "diverse" else ""
        lines.append(f"  cohesion in {name} (mean cosine to the cluster's mean): {told}")
    return lines


def read_videos(cfg: ClusterConfig) -> Videos:
    """Who takes part: the usable rows of the catalog, those with an embedding where there are embeddings.

    Raises ValueError when no embedding belongs to an id or the files do not fit each other.
    """
    captions: dict[str, str] | None = None
    if cfg.catalog is not None:
        found = read_catalog(cfg.catalog)
        captions = {video_id: found.captions[row] for video_id, row in found.usable().items()}
        if not captions:
            raise ValueError(f"--catalog {cfg.catalog}: no row has status ok")
    folders = {"--embeddings": cfg.embeddings, "--caption_embeddings": cfg.caption_embeddings}
    given = {flag: (folder, *read_embeddings(folder, flag)) for flag, folder in folders.items() if folder is not None}
    places = {flag: {video_id: i for i, video_id in enumerate(named)} for flag, (_, named, _) in given.items()}
    named = next(iter(given.values()))[1] if given else list(captions or ())
    known = [*places.values(), *([captions] if captions is not None else [])]
    ids = [i for i in named if all(i in ids for ids in known)]
    if not ids:
        told = " and ".join(f"{flag} {folder}" for flag, (folder, _, _) in given.items())
        raise ValueError(f"{told}: none of its ids is a usable video of --catalog {cfg.catalog}")
    without = len(captions if captions is not None else named) - len(ids)
    if without:
        log.warning("%d usable videos have no embedding and take no part", without)
    return Videos(
        ids,
        [captions[i] for i in ids] if captions is not None else [""] * len(ids),
        given["--embeddings"][2] if "--embeddings" in given else None,
        _rows(ids, places.get("--embeddings")),
        given["--caption_embeddings"][2] if "--caption_embeddings" in given else None,
        _rows(ids, places.get("--caption_embeddings")),
        cfg.caption_weight,
        cfg.output.parent if cfg.output.parent.is_dir() else None,
    )


def _rows(ids: list[str], places: dict[str, int] | None) -> Rows | None:
    """The row of each id; None when they are 0, 1, 2, ... to the end, or there are no rows."""
    if places is None:
        return None
    rows = np.fromiter((places[i] for i in ids), np.int64, len(ids))
    return None if len(rows) == len(places) and (rows == np.arange(len(rows))).all() else rows


def read_embeddings(folder: Path, flag: str = "--embeddings") -> tuple[list[str], NDArray[np.floating]]:
    """(ids, matrix [N, D] of float16 or float32, mapped from the disk). Raises ValueError when they do not fit."""
    file = folder / "embeddings.npy"
    if not file.is_file():
        raise ValueError(f"{flag} {folder}: it holds no embeddings.npy")
    ids = read_text(folder / "ids.txt", flag).splitlines()
    try:
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{flag} {file}: not a NumPy array ({error})") from error
    if matrix.ndim != 2 or matrix.dtype not in (np.float16, np.float32) or len(matrix) != len(ids):
        raise ValueError(
            f"{flag} {folder}: expected float16 or float32 [N, D] with one line of ids.txt a row, got "
            f"{matrix.dtype} {list(matrix.shape)} and {len(ids)} ids"
        )
    if len(set(ids)) != len(ids):
        raise ValueError(f"{flag} {folder}: ids.txt names a video twice")
    return ids, matrix
