"""Clusters of exactly L vectors that point the same way, in memory linear in their number.

Vectors are cut in two along their principal direction, at a multiple of L, until a cell holds at most CELL of them;
inside a cell they are cut on down to clusters, and then pairs are swapped as long as that brings alike ones together.
Time grows as N log N.

All dot products are of integers, exact in float32 whatever the order of summation: the outcome does not depend on the
number of threads or on the BLAS in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Vectors = NDArray[np.float32]

NORM = 2048.0
"""Length of a quantised vector. By Cauchy-Schwarz no partial sum of a dot product exceeds 2048**2 = 2**22 by more than
what rounding adds, well below 2**24, up to which float32 holds every integer."""
CELL = 768  # vectors that are improved together: similarities of a cell take CELL**2 float32 = 2.4 MB
DIRECTION_SAMPLE = 8192  # vectors that the principal direction is computed from
POWER_STEPS = 12
CUT_AT = (0.4, 0.6)  # share of the vectors on the nearer side of a cut
MAX_SWEEPS = 30  # over a cell; sweeps end earlier, when no swap helps


def quantise(embeddings: NDArray[np.floating], ids: Sequence[str]) -> Vectors:
    """Whole numbers float32 [N, D]: each row scaled to length NORM and rounded. A row of zeros stays zero.

    Raises ValueError naming an id when a row holds a value that is not finite.
    """
    vectors = np.empty(embeddings.shape, np.float32)
    for start in range(0, len(vectors), 65536):
        piece = np.asarray(embeddings[start : start + 65536], np.float32)
        finite = np.isfinite(piece).all(axis=1)
        if not finite.all():
            first = start + int(np.flatnonzero(~finite)[0])
            raise ValueError(f"--embeddings: the vector of video '{ids[first]}' (row {first}) is not finite")
        # Largest value first: the square of a large float16 would leave float32's range.
        piece = piece / np.maximum(np.abs(piece).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        lengths = np.sqrt(np.square(piece).sum(axis=1, keepdims=True))
        vectors[start : start + 65536] = np.rint(piece * (NORM / np.maximum(lengths, 0.5)))
    return vectors


def cohesion(vectors: Vectors, labels: NDArray[np.int64]) -> float:
    """Mean cosine of each clustered vector to the mean of its cluster, in [-1, 1]; labels below 0 are in none."""
    members = np.flatnonzero(labels >= 0)
    order = members[np.argsort(labels[members], kind="stable")]
    size = int(np.count_nonzero(labels == labels[order[0]]))
    total = 0.0
    for start in range(0, len(order), 8192 * size):
        group = vectors[order[start : start + 8192 * size]].reshape(-1, size, vectors.shape[1]).astype(np.float64)
        mean = group.sum(axis=1, keepdims=True)
        lengths = np.sqrt(np.square(group).sum(axis=2) * np.square(mean).sum(axis=2))
        total += float(((group * mean).sum(axis=2) / np.maximum(lengths, 1e-12)).sum())
    return total / len(order)


def balanced_clusters(vectors: Vectors, size: int, seed: int) -> NDArray[np.int64]:
    """Labels int64 [N]: 0, 1, ... on exactly `size` vectors each, -1 on the N mod size least like the mean of all.

    vectors: from `quantise`; N >= size. Zero and equal vectors are clustered in order of their rows.
    """
    assert len(vectors) >= size >= 1
    labels = np.full(len(vectors), -1, np.int64)
    members = _without_remainder(vectors, size)
    cell_size = max(size, CELL // size * size)
    label = 0
    with tqdm(total=len(members), unit="video", desc="cluster") as bar:
        for cell in _cut(vectors, members, size, cell_size, np.random.default_rng(seed)):
            for group in _cluster_cell(vectors[cell], size, np.random.default_rng([seed, label])):
                labels[cell[group]] = label
                label += 1
            bar.update(len(cell))
    return labels


def _without_remainder(vectors: Vectors, size: int) -> NDArray[np.int64]:
    rest = len(vectors) % size
    if not rest:
        return np.arange(len(vectors))
    likeness = vectors @ _as_direction(vectors.sum(axis=0, dtype=np.float64))
    return np.sort(np.argsort(-likeness, kind="stable")[: len(vectors) - rest])


def _as_direction(vector: NDArray[np.float64]) -> Vectors:
    """The vector at length NORM in whole numbers; zero stays zero."""
    vector = vector / max(float(np.abs(vector).max()), 1e-300)
    return np.rint(vector * (NORM / max(float(np.sqrt(np.square(vector).sum())), 0.5))).astype(np.float32)


def _cut(
    vectors: Vectors, members: NDArray[np.int64], size: int, cell_size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Cells of at most `cell_size` rows, each a multiple of `size`; neighbours in order are neighbours in space."""
    stack = [members]
    while stack:
        rows = stack.pop()
        if len(rows) <= cell_size:
            yield rows
            continue
        near, far = _halves(vectors, rows, size, rng)
        stack += [far, near]


def _halves(
    vectors: Vectors, rows: NDArray[np.int64], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both sides of a cut across the principal direction, at a multiple of `size` somewhere around the middle.

    Where exactly is drawn: so another seed gives other clusters of the same quality.
    """
    sample = rows if len(rows) <= DIRECTION_SAMPLE else np.sort(rng.choice(rows, DIRECTION_SAMPLE, replace=False))
    direction = _principal_direction(vectors[sample], rng)
    heights = np.concatenate([vectors[rows[i : i + 65536]] @ direction for i in range(0, len(rows), 65536)])
    order = rows[np.argsort(heights, kind="stable")]
    groups = len(rows) // size
    middle = size * min(max(1, round(groups * rng.uniform(*CUT_AT))), groups - 1)
    return np.sort(order[:middle]), np.sort(order[middle:])


def _principal_direction(sample: Vectors, rng: np.random.Generator) -> Vectors:
    """Direction of greatest variance by power iteration, in whole numbers of length NORM.

    Sums over the sample are exact too: heights below 2**23 times values below 2**11 over 2**13 rows stay below 2**53.
    """
    transposed = sample.astype(np.float64).T
    direction = _as_direction(rng.standard_normal(sample.shape[1]))
    for _ in range(POWER_STEPS):
        heights = (sample @ direction).astype(np.float64)
        direction_before = direction
        direction = _as_direction(transposed @ (heights - np.rint(heights.mean())))
        if not direction.any():
            return direction_before
    return direction


def _cluster_cell(vectors: Vectors, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Rows of a cell in groups of `size`."""
    groups = list(_cut(vectors, np.arange(len(vectors)), size, size, rng))
    labels = np.empty(len(vectors), np.int64)
    for label, group in enumerate(groups):
        labels[group] = label
    _improve(vectors @ vectors.T, labels, len(groups))
    order = np.argsort(labels, kind="stable")
    yield from order.reshape(len(groups), size)


def _improve(similarity: NDArray[np.float32], labels: NDArray[np.int64], num_groups: int) -> None:
    """Swap pairs between groups, in place, as long as that raises the sum of similarities within groups.

    similarity: whole numbers [n, n]. Each row in turn takes the best swap there is for it; ties go to the lower row.
    """
    n = len(labels)
    if num_groups < 2:
        return
    similarity = similarity.astype(np.float64)
    # pull[i, g]: sum of the similarities of row i to the members of group g, itself included in its own group.
    pull = similarity @ np.eye(num_groups)[labels]
    own = similarity.diagonal().copy()
    rows = np.arange(n)
    for _ in range(MAX_SWEEPS):
        swapped = 0
        for i in range(n):
            here = labels[i]
            stay = pull[rows, labels] - own
            # Row i moves to j's group (without j), row j to i's group (without i).
            gain = pull[i, labels] + pull[:, here] - 2 * similarity[i] - stay[i] - stay
            gain[labels == here] = 0
            j = int(np.argmax(gain))
            if gain[j] > 0:
                there = labels[j]
                change = similarity[:, j] - similarity[:, i]
                pull[:, here] += change
                pull[:, there] -= change
                labels[i], labels[j] = there, here
                swapped += 1
        if not swapped:
            break
