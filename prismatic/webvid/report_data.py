"""What the report tells in numbers: clusters of a file, how alike their videos are, and what was skipped and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic.webvid.catalog import Catalog
from prismatic.webvid.cluster import read_embeddings
from prismatic.webvid.clusters_file import Grouped, read_clusters_file
from prismatic.webvid.extract import FAILED, read_failures
from prismatic.webvid.files import write_rows
from prismatic.webvid.quantised import PIECE, Rows, Vectors, cohesion_bound, cohesions, quantise
from prismatic.webvid.texts import Texts

LONGEST_NAME = 200  # characters
EXAMPLES = 3  # ids that a reason of skipping is shown with
_DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S+|0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True)
class Clusters(Grouped):
    """names [G]. members: rows of the catalog, cluster after cluster [n]; ends: where each cluster ends in them [G]."""

    names: Texts
    members: Rows
    ends: Rows

    def rows(self, cluster: int) -> list[int]:
        """Rows of the catalog of a cluster's videos."""
        return self.members[self.span(cluster)].tolist()


@dataclass(frozen=True)
class Likeness:
    """How alike the videos of clusters are. found, chance: cohesion of each cluster, float64 [G], and of random ones of
    the same sizes. bound: what the mean of found cannot exceed (None for sizes that differ). vectors: [n, D], in the
    order of `Clusters.members`."""

    found: NDArray[np.float64]
    chance: NDArray[np.float64]
    bound: float | None
    vectors: Vectors


@dataclass(frozen=True)
class Reason:
    """Videos that take no part for one reason."""

    where: str
    text: str
    count: int
    examples: list[str]


def read_cluster_rows(path: Path, catalog: Catalog) -> Clusters:
    """Clusters in the order of the file. Raises ValueError for an id that the catalog has not, or an empty file."""
    file = read_clusters_file(path)
    places = catalog.ids.places(file.ids)
    if len(missing := np.flatnonzero(places < 0)):
        raise ValueError(f"--clusters {path}: no video '{file.ids[int(missing[0])]}' in the --catalog")
    return Clusters(file.names, places, file.ends)


def measure(folder: Path, clusters: Clusters, catalog: Catalog, seed: int) -> Likeness:
    """Raises ValueError when a video of a cluster has no embedding."""
    ids, matrix = read_embeddings(folder)
    sizes = clusters.sizes
    named = catalog.ids.take(clusters.members)
    rows = ids.places(named)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise ValueError(
            f"--embeddings {folder}: no vector of {len(missing)} videos of --clusters, as of {named[int(missing[0])]}"
        )
    vectors = quantise(matrix, named, rows)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    shuffled = np.random.default_rng(seed).permutation(labels)
    even = len(set(sizes.tolist())) == 1
    bound = cohesion_bound(vectors, int(sizes[0]), seed) if even and sizes[0] > 1 else None
    return Likeness(_of_all_sizes(vectors, labels, sizes), _of_all_sizes(vectors, shuffled, sizes), bound, vectors)


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


def skipped(catalog: Catalog, clusters: Clusters, folders: dict[str, Path | None], output: Path) -> list[Reason]:
    """Reasons with their counts, the most frequent first. Each video is written to `output`, a row {where, video,
    reason} a line, with the reason as it is."""
    found: Counter[tuple[str, str]] = Counter()
    shown: dict[tuple[str, str], list[str]] = {}

    def rows() -> Iterator[dict[str, str]]:
        for where, text, video in _skipped(catalog, clusters, folders):
            yield {"where": where, "video": video, "reason": text}
            key = (where, _DETAIL.sub("...", "duplicate" if text.startswith("duplicate of ") else text)[:LONGEST_NAME])
            found[key] += 1
            if found[key] <= EXAMPLES:
                shown.setdefault(key, []).append(video[:LONGEST_NAME])

    write_rows(output, rows())
    return [Reason(where, text, n, shown[where, text]) for (where, text), n in found.most_common()]


def _skipped(catalog: Catalog, clusters: Clusters, folders: dict[str, Path | None]) -> Iterator[tuple[str, str, str]]:
    """(where, reason, video): of extract and embed, of the catalog, and the remainder."""
    explained: set[str] = set()
    for name, folder in folders.items():
        if folder is not None and (folder / FAILED).is_file():
            for video_id, reason in read_failures(folder / FAILED).items():
                yield name, reason, video_id
                explained.add(video_id)
    for row in np.flatnonzero(~catalog.ok).tolist():
        yield "catalog", catalog.statuses[row], catalog.paths[row] or catalog.ids[row]
    left = catalog.ok.copy()
    left[clusters.members] = False
    for video_id in catalog.ids.take(np.flatnonzero(left)):
        if video_id not in explained:
            yield "cluster", "usable, but in no cluster (remainder, or not asked for)", video_id
