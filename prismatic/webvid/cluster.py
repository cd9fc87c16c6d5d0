"""`webvid.py cluster`: videos into clusters of exactly L, by a method of METHODS.

Owns who takes part, what happens to the remainder, and the file. The methods see rows of a matrix, never files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic.conf.webvid import ClusterConfig
from prismatic.webvid.catalog import read_catalog
from prismatic.webvid.files import epoch_path, write_rows
from prismatic.webvid.methods import LEFT_OUT, METHODS, Labels, Videos, random_clusters
from prismatic.webvid.quantised import Rows, Vectors, cohesion, cohesion_bound, cohesion_floor
from prismatic.webvid.texts import PIECE, Texts, read_lines

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
        write_rows(output, _cluster_rows(videos, labels, members))
        left_out = list(videos.ids.take(np.flatnonzero(labels == LEFT_OUT)))
        lines.append(f"{output}: {len(members) // size} clusters of exactly {size} from {count} videos ({cfg.method})")
        lines += _measured(videos, labels, size, cfg)
        if left_out:
            more = "" if len(left_out) <= LISTED else f" and {len(left_out) - LISTED} more"
            named = ", ".join(left_out[:LISTED])
            lines.append(f"  left out, {count} mod {size} = {len(left_out)}: {named}{more}")
    return "\n".join(lines)


def _cluster_rows(videos: Videos, labels: Labels, members: Rows) -> Iterator[dict[str, str]]:
    for start in range(0, len(members), PIECE):
        rows = members[start : start + PIECE]
        texts = zip(videos.ids.take(rows), videos.captions.take(rows), labels[rows].tolist(), strict=True)
        yield from ({"video_id": i, "caption": caption, "cluster": str(label)} for i, caption, label in texts)


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
        told += f", at least about {cohesion_floor(vectors):.4f}" if cfg.method == "diverse" else ""
        lines.append(f"  cohesion in {name} (mean cosine to the cluster's mean): {told}")
    return lines


def read_videos(cfg: ClusterConfig) -> Videos:
    """Who takes part: the usable rows of the catalog, those with an embedding where there are embeddings.

    Raises ValueError when no embedding belongs to an id or the files do not fit each other.
    """
    known: list[Texts] = []
    captions: Texts | None = None
    if cfg.catalog is not None:
        found = read_catalog(cfg.catalog)
        usable = found.usable()
        if not len(usable):
            raise ValueError(f"--catalog {cfg.catalog}: no row has status ok")
        known, captions = [found.ids.take(usable)], found.captions.take(usable)
    folders = {"--embeddings": cfg.embeddings, "--caption_embeddings": cfg.caption_embeddings}
    given = {flag: (folder, *read_embeddings(folder, flag)) for flag, folder in folders.items() if folder is not None}
    # The order is that of the embeddings, where there are some.
    named = next(iter(given.values()))[1] if given else known[0]
    known += [ids for _, ids, _ in given.values()]
    everywhere = np.ones(len(named), bool)
    for ids in known:
        everywhere &= ids.places(named) >= 0
    ids = named if everywhere.all() else named.take(np.flatnonzero(everywhere))
    if not len(ids):
        told = " and ".join(f"{flag} {folder}" for flag, (folder, _, _) in given.items())
        raise ValueError(f"{told}: none of its ids is a usable video of --catalog {cfg.catalog}")
    without = len(known[0]) - len(ids)
    if without:
        log.warning("%d usable videos have no embedding and take no part", without)
    rows = {flag: _rows(ids, where) for flag, (_, where, _) in given.items()}
    matrices = {flag: matrix for flag, (_, _, matrix) in given.items()}
    return Videos(
        ids,
        captions.take(known[0].places(ids)) if captions is not None else Texts.of([""] * len(ids)),
        matrices.get("--embeddings"),
        rows.get("--embeddings"),
        matrices.get("--caption_embeddings"),
        rows.get("--caption_embeddings"),
        cfg.caption_weight,
        cfg.output.parent if cfg.output.parent.is_dir() else None,
    )


def _rows(ids: Texts, where: Texts) -> Rows | None:
    """The row of each id; None when they are 0, 1, 2, ... to the end."""
    rows = where.places(ids)
    return None if len(rows) == len(where) and (rows == np.arange(len(rows))).all() else rows


def read_embeddings(folder: Path, flag: str = "--embeddings") -> tuple[Texts, NDArray[np.floating]]:
    """(ids, matrix [N, D] of float16 or float32, mapped from the disk). Raises ValueError when they do not fit."""
    file = folder / "embeddings.npy"
    if not file.is_file():
        raise ValueError(f"{flag} {folder}: it holds no embeddings.npy")
    ids = read_lines(folder / "ids.txt", flag)
    try:
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{flag} {file}: not a NumPy array ({error})") from error
    if matrix.ndim != 2 or matrix.dtype not in (np.float16, np.float32) or len(matrix) != len(ids):
        raise ValueError(
            f"{flag} {folder}: expected float16 or float32 [N, D] with one line of ids.txt a row, got "
            f"{matrix.dtype} {list(matrix.shape)} and {len(ids)} ids"
        )
    if ids.has_repeats():
        raise ValueError(f"{flag} {folder}: ids.txt names a video twice")
    return ids, matrix
