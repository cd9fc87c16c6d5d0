"""`webvid.py cluster`: videos into clusters of exactly L, by a method of METHODS.

Owns who takes part, what happens to the remainder, and the file. The methods see rows of a matrix, never files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic.conf.webvid import ClusterConfig
from prismatic.registry import Registry
from prismatic.webvid.balanced import balanced_clusters, cohesion, quantise
from prismatic.webvid.catalog import read_catalog
from prismatic.webvid.files import epoch_path, read_text, write_rows

log = logging.getLogger(__name__)

Labels = NDArray[np.int64]
LEFT_OUT = -1
"""Label of a video that is in no cluster."""


@dataclass(frozen=True)
class Videos:
    """Who takes part. embeddings: float16 or float32 [N, D], a row for each id, or None."""

    ids: list[str]
    captions: list[str]
    embeddings: NDArray[np.floating] | None


Method = Callable[[Videos, int, int], Labels]
"""(videos, L, seed) -> labels int64 [N]: 0, 1, 2, ... on exactly L videos each, LEFT_OUT on the N mod L others."""
METHODS: Registry[Method] = Registry("cluster method", flag="--method")


@METHODS.register("random")
def random_clusters(videos: Videos, size: int, seed: int) -> Labels:
    """A shuffle cut into pieces; the remainder is the end of the shuffle."""
    count = len(videos.ids)
    labels = np.full(count, LEFT_OUT, np.int64)
    order = np.random.default_rng(seed).permutation(count)[: count - count % size]
    labels[order] = np.arange(len(order)) // size
    return labels


@METHODS.register("visual")
def visual_clusters(videos: Videos, size: int, seed: int) -> Labels:
    """Videos whose embeddings point the same way; the remainder is what is least like the mean of all."""
    if videos.embeddings is None:
        raise ValueError("--method visual needs --embeddings DIR, a folder with embeddings.npy and ids.txt")
    return balanced_clusters(quantise(videos.embeddings, videos.ids), size, seed)


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
        if videos.embeddings is not None:
            lines.append(
                f"  cohesion (mean cosine to the cluster's mean): {_cohesions(videos, labels, size, cfg.seed)}"
            )
        if left_out:
            lines.append(f"  left out, {count} mod {size} = {len(left_out)}: {', '.join(left_out)}")
    return "\n".join(lines)


def _cohesions(videos: Videos, labels: Labels, size: int, seed: int) -> str:
    assert videos.embeddings is not None
    vectors = quantise(videos.embeddings, videos.ids)
    chance = cohesion(vectors, random_clusters(videos, size, seed))
    return f"{cohesion(vectors, labels):.4f}, of random clusters {chance:.4f}"


def read_videos(cfg: ClusterConfig) -> Videos:
    """Who takes part: the usable rows of the catalog, those with an embedding where there are embeddings.

    Raises ValueError when an embedding belongs to no id or the files do not fit each other.
    """
    captions: dict[str, str] | None = None
    if cfg.catalog is not None:
        found = read_catalog(cfg.catalog)
        captions = {video_id: found.captions[row] for video_id, row in found.usable().items()}
        if not captions:
            raise ValueError(f"--catalog {cfg.catalog}: no row has status ok")
    if cfg.embeddings is None:
        assert captions is not None
        return Videos(list(captions), list(captions.values()), None)
    ids, matrix = read_embeddings(cfg.embeddings)
    if captions is None:
        return Videos(ids, [""] * len(ids), matrix)
    rows = [i for i, video_id in enumerate(ids) if video_id in captions]
    if not rows:
        raise ValueError(f"--embeddings {cfg.embeddings}: none of its ids is a usable video of --catalog {cfg.catalog}")
    without = len(captions) - len(rows)
    if without:
        log.warning("%d usable videos of the catalog have no embedding and take no part", without)
    kept = [ids[i] for i in rows]
    return Videos(kept, [captions[i] for i in kept], matrix if len(rows) == len(ids) else matrix[rows])


def read_embeddings(folder: Path) -> tuple[list[str], NDArray[np.floating]]:
    """(ids, matrix [N, D] of float16 or float32, mapped from the disk). Raises ValueError when they do not fit."""
    file = folder / "embeddings.npy"
    if not file.is_file():
        raise ValueError(f"--embeddings {folder}: it holds no embeddings.npy")
    ids = read_text(folder / "ids.txt", "--embeddings").splitlines()
    try:
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"--embeddings {file}: not a NumPy array ({error})") from error
    if matrix.ndim != 2 or matrix.dtype not in (np.float16, np.float32) or len(matrix) != len(ids):
        raise ValueError(
            f"--embeddings {folder}: expected float16 or float32 [N, D] with one line of ids.txt a row, got "
            f"{matrix.dtype} {list(matrix.shape)} and {len(ids)} ids"
        )
    if len(set(ids)) != len(ids):
        raise ValueError(f"--embeddings {folder}: ids.txt names a video twice")
    return ids, matrix
