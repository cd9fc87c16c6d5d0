"""`--dataset.weave.method` and `--dataset.weave.clusters`: which clips may meet in an example that training weaves."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic import dist
from prismatic.conf.data import OnlineWeaveConfig
from prismatic.data.weave import Recipe
from prismatic.types import Record
from prismatic.webvid.cluster import LEFT_OUT, METHODS, Videos, read_embeddings
from prismatic.webvid.clusters_file import read_clusters_file
from prismatic.webvid.files import whole_file
from prismatic.webvid.texts import PIECE, Texts

log = logging.getLogger(__name__)

CACHE = ".weave"
"""Folder beside embeddings.npy that keeps the clusters made of it: a run that goes on does not make them again."""


@dataclass(frozen=True)
class ClusterTables:
    """Clusters by L where there are such, otherwise tables that epochs take in turn. Clip numbers [C, size] each."""

    in_turn: tuple[NDArray[np.int32], ...]
    by_size: dict[int, NDArray[np.int32]] = field(default_factory=dict)

    def __call__(self, epoch: int, size: int) -> NDArray[np.int32]:
        """The clusters of an epoch whose examples have `size` clips."""
        found = self.by_size.get(size)
        return self.in_turn[epoch % len(self.in_turn)] if found is None else found


def find_clusters(
    options: OnlineWeaveConfig, clips: Sequence[Record], recipe: Recipe, seed: int, name: str
) -> ClusterTables:
    """Which clips may meet, by epoch and L; every process calls it. name: of the clips' file, for error texts.

    Raises ValueError naming the flag for clusters that do not fit the clips, or cannot be made.
    """
    everyone = np.arange(len(clips), dtype=np.int32)[None, :]
    if options.method == "random":
        return ClusterTables((everyone,))
    ids = Texts.of(record.id for record in clips)
    if ids.has_repeats():
        raise ValueError(f"{name}: two clips have the same id; clusters tell clips apart by their ids")
    sizes = sorted({recipe.videos(epoch) for epoch in range(len(recipe.curriculum) + 1)} - {1})
    files = options.clusters if isinstance(options.clusters, list) else [options.clusters] if options.clusters else []
    if files and not files[0].is_dir():
        return ClusterTables(tuple(_from_file(file, ids, sizes, name) for file in files))
    if len(files) > 1:
        raise ValueError("--dataset.weave.clusters takes several clusters files, but one folder of embeddings")
    numbers, videos = _videos(files[0] if files else None, clips, ids)
    tables = {}
    for size in sizes:
        if len(numbers) < size:
            raise ValueError(f"{name}: {len(numbers)} clips that can be clustered make no example of {size}")
        labels = _labels(options.method, videos, size, seed, files[0] / CACHE if files else None)
        order = np.argsort(labels, kind="stable")
        tables[size] = numbers[order[labels[order] != LEFT_OUT]].reshape(-1, size)
    return ClusterTables((everyone,), tables)


def _from_file(file: Path, ids: Texts, sizes: list[int], name: str) -> NDArray[np.int32]:
    """Clip numbers [C, size] of a clusters file; each of `sizes` divides size."""
    found = read_clusters_file(file, "--dataset.weave.clusters")
    places = ids.places(found.ids)
    unknown = np.flatnonzero(places < 0)
    if len(unknown):
        # A clustering of training and validation clips together would put them into one example.
        raise ValueError(
            f"--dataset.weave.clusters {file}: {len(unknown)} of its videos are no clips of {name}, the first: "
            f"{', '.join(found.ids.take(unknown[:5]))}; cluster the very clips that are woven"
        )
    lengths = np.unique(found.sizes).tolist()
    if len(lengths) != 1:
        raise ValueError(f"--dataset.weave.clusters {file}: expected clusters of one size, got sizes {lengths}")
    for size in sizes:
        if lengths[0] % size:
            raise ValueError(
                f"--dataset.weave.clusters {file}: clusters of {lengths[0]} cannot be cut into examples of {size} "
                f"clips; make them with `webvid.py cluster --videos_per_cluster {size}` (or a multiple)"
            )
    return places.astype(np.int32).reshape(-1, lengths[0])


def _videos(folder: Path | None, clips: Sequence[Record], ids: Texts) -> tuple[NDArray[np.int32], Videos]:
    """(clip number of each video that is clustered, the videos): those with an embedding where there are embeddings."""
    captions = Texts.of(clip.turns[-1].text for clip in clips)
    if folder is None:
        return np.arange(len(clips), dtype=np.int32), Videos(ids, captions, None)
    named, matrix = read_embeddings(folder)
    numbers = ids.places(named)
    rows = np.flatnonzero(numbers >= 0)
    if len(rows) < len(ids):
        without = len(ids) - len(rows)
        log.warning("%d of %d clips have no embedding in %s and are not woven", without, len(ids), folder)
    numbers = numbers[rows]
    scratch = folder if os.access(folder, os.W_OK) else None
    kept = None if len(rows) == len(named) else rows
    videos = Videos(ids.take(numbers), captions.take(numbers), matrix, kept, scratch=scratch)
    return numbers.astype(np.int32), videos


def _labels(method: str, videos: Videos, size: int, seed: int, cache: Path | None) -> NDArray[np.int64]:
    """Cluster of each video, made by process 0 for all; kept in the folder `cache` for the next start."""
    labels, problem = None, None
    if dist.rank_zero():
        try:
            file = cache / f"{method}-L{size}-{_digest(videos, seed)}.npy" if cache is not None else None
            labels = _cached(file, len(videos.ids)) if file is not None else None
            if labels is None:
                log.info("clustering %d clips by %d (%s) ...", len(videos.ids), size, method)
                labels = METHODS.get(method)(videos, size, seed)
                if file is not None:
                    _keep(file, labels)
        except ValueError as error:
            told = "; here --dataset.weave.clusters names that folder" if cache is None else f" ({cache.parent})"
            problem = ValueError(f"--dataset.weave.method {method}: {error}{told}")
    dist.raise_together(problem)
    labels = dist.broadcast_object(labels)
    assert labels is not None
    return labels


def _digest(videos: Videos, seed: int) -> str:
    """Of all that clusters depend on beside method and size."""
    digest = hashlib.blake2b(repr(seed).encode(), digest_size=12)
    for texts in (videos.ids, videos.captions):
        digest.update("\0".join(texts).encode() + b"\n")
    if videos.embeddings is not None:
        rows = np.arange(len(videos.embeddings)) if videos.rows is None else videos.rows
        for start in range(0, len(rows), PIECE):
            digest.update(np.ascontiguousarray(videos.embeddings[rows[start : start + PIECE]]).data)
    return digest.hexdigest()


def _cached(cache: Path, count: int) -> NDArray[np.int64] | None:
    if not cache.is_file():
        return None
    try:
        labels = np.load(cache, allow_pickle=False)
    except (ValueError, EOFError) as error:
        log.warning("%s cannot be read (%s); the clusters are made again", cache, error)
        return None
    return labels if labels.shape == (count,) else None


def _keep(cache: Path, labels: NDArray[np.int64]) -> None:
    try:
        with whole_file(cache, "wb") as file:
            np.save(file, labels)
    except OSError as error:
        log.warning("%s cannot be written (%s); the next start makes these clusters again", cache, error.strerror)
