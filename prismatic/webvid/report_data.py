"""What the report tells in numbers: clusters of a file, how alike their videos are, and what was skipped and why."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic.webvid.catalog import OK, Catalog
from prismatic.webvid.cluster import read_embeddings
from prismatic.webvid.files import iter_rows, read_text
from prismatic.webvid.quantised import PIECE, Rows, Vectors, cohesion_bound, cohesions, quantise

EXAMPLES = 3  # ids that a reason of skipping is shown with
FAILED = "failed.jsonl"  # what extract and embed leave beside their output: {"id", "reason"} a line
_DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S+|0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Clusters:
    """names [G]; rows of the catalog of each cluster's videos."""

    names: list[str]
    rows: list[list[int]]


@dataclass(frozen=True)
class Likeness:
    """How alike the videos of clusters are. found, chance: cohesion of each cluster, float64 [G], and of random ones of
    the same sizes. bound: what the mean of found cannot exceed (None for sizes that differ). vectors: [N, D];
    members: for each cluster, rows of `vectors`."""

    found: NDArray[np.float64]
    chance: NDArray[np.float64]
    bound: float | None
    vectors: Vectors
    members: list[Rows]


@dataclass(frozen=True)
class Reason:
    """Videos that take no part for one reason."""

    where: str
    text: str
    count: int
    examples: list[str]


def read_cluster_rows(path: Path, catalog: Catalog) -> Clusters:
    """Clusters in the order of the file. Raises ValueError for an id that the catalog has not, or an empty file."""
    rows_of = {video_id: row for row, video_id in reversed(list(enumerate(catalog.ids)))}
    clusters: dict[str, list[int]] = {}
    for number, row in enumerate(iter_rows(path, "--clusters"), start=1):
        if "video_id" not in row or "cluster" not in row:
            raise ValueError(f"--clusters {path}: row {number} lacks video_id or cluster")
        place = rows_of.get(str(row["video_id"]))
        if place is None:
            raise ValueError(f"--clusters {path}: row {number}: no video '{row['video_id']}' in the --catalog")
        clusters.setdefault(str(row["cluster"]), []).append(place)
    if not clusters:
        raise ValueError(f"--clusters {path} is empty")
    return Clusters(list(clusters), list(clusters.values()))


def measure(folder: Path, clusters: Clusters, catalog: Catalog, seed: int) -> Likeness:
    """Raises ValueError when a video of a cluster has no embedding."""
    ids, matrix = read_embeddings(folder)
    place = {video_id: row for row, video_id in enumerate(ids)}
    sizes = np.array([len(rows) for rows in clusters.rows])
    named = [catalog.ids[row] for rows in clusters.rows for row in rows]
    missing = [video_id for video_id in named if video_id not in place]
    if missing:
        raise ValueError(f"--embeddings {folder}: no vector of {len(missing)} videos of --clusters, as of {missing[0]}")
    vectors = quantise(matrix, named, np.array([place[video_id] for video_id in named], np.int64))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    members = np.split(np.arange(len(named)), np.cumsum(sizes)[:-1])
    shuffled = np.random.default_rng(seed).permutation(labels)
    even = len(set(sizes.tolist())) == 1
    bound = cohesion_bound(vectors, int(sizes[0]), seed) if even and sizes[0] > 1 else None
    return Likeness(
        _of_all_sizes(vectors, labels, sizes), _of_all_sizes(vectors, shuffled, sizes), bound, vectors, members
    )


def _of_all_sizes(vectors: Vectors, labels: Rows, sizes: Rows) -> NDArray[np.float64]:
    found = np.empty(len(sizes))
    for size in np.unique(sizes).tolist():
        chosen = sizes == size
        found[chosen] = cohesions(vectors, np.where(chosen[labels], labels, -1))
    return found


def principal_plane(vectors: Vectors, rows: Rows, seed: int) -> NDArray[np.float64]:
    """Places float64 [n, 2] of the rows on the plane that shows most of the variance of (a sample of) all vectors."""
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.choice(len(vectors), min(PIECE // 4, len(vectors)), replace=False))].astype(np.float64)
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    plane = axes[:, :-3:-1]
    # The sign of an axis is arbitrary: the largest entry is made positive.
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), np.arange(plane.shape[1])])
    places = (vectors[rows] - mean) @ plane
    return places if plane.shape[1] == 2 else np.hstack([places, np.zeros((len(places), 2 - plane.shape[1]))])


def skipped(catalog: Catalog, clusters: Clusters, folders: dict[str, Path | None]) -> list[Reason]:
    """Reasons with their counts, the most frequent first: of the catalog, of extract and embed, and the remainder."""
    found: Counter[tuple[str, str]] = Counter()
    shown: dict[tuple[str, str], list[str]] = {}

    def add(where: str, text: str, video_id: str) -> None:
        key = (where, _DETAIL.sub("...", text))
        found[key] += 1
        if found[key] <= EXAMPLES:
            shown.setdefault(key, []).append(video_id)

    explained: set[str] = set()
    for name, folder in folders.items():
        if folder is not None and (folder / FAILED).is_file():
            for line in read_text(folder / FAILED, f"--{name}").splitlines():
                row = json.loads(line)
                add(name, str(row["reason"]), str(row["id"]))
                explained.add(str(row["id"]))
    clustered = {row for rows in clusters.rows for row in rows}
    for row, status in enumerate(catalog.statuses):
        if status != OK:
            text = "duplicate" if status.startswith("duplicate of ") else status
            add("catalog", text, catalog.paths[row] or catalog.ids[row])
        elif row not in clustered and catalog.ids[row] not in explained:
            add("cluster", "usable, but in no cluster (remainder, or not asked for)", catalog.ids[row])
    return [Reason(where, text, n, shown[where, text]) for (where, text), n in found.most_common()]
