"""Embeddings as whole numbers, so that every dot product is exact; and what clusters of them are worth.

A float32 sum of whole numbers below 2**24 is exact whatever its order. So nothing computed here or in `balanced`
depends on the number of threads or on the BLAS in use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Vectors = NDArray[np.int16]
Rows = NDArray[np.int64]

NORM = 2048.0
"""Length of a quantised vector. By Cauchy-Schwarz no partial sum of a dot product exceeds 2048**2 = 2**22 by more than
what rounding adds, well below 2**24, up to which float32 holds every integer."""
PIECE = 16384  # rows read at a time
IN_MEMORY = 2 << 30  # bytes of quantised vectors above which they lie in a scratch file
PROJECTED = 256  # width in which candidates are looked for; decisions are taken in full width
BOUND_SAMPLE = 512

one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")
"""Decorator: many small products in a row leave the other threads of a BLAS nothing but waiting, which they do by
spinning; two threads took twice the CPU-seconds of one, and on a busy machine four times."""


def quantise(
    embeddings: NDArray[np.floating], ids: Sequence[str], rows: Rows | None = None, scratch: Path | None = None
) -> Vectors:
    """int16 [N, D]: each row scaled to length NORM and rounded. A row of zeros stays zero.

    rows: which rows of `embeddings` to take, default all; ids: their names, one for each row taken. Takes 2 N D bytes:
    memory, or beyond IN_MEMORY a nameless file in the folder `scratch` (default: the system's) mapped into memory.

    Raises ValueError naming an id when a row holds a value that is not finite.
    """
    count = len(embeddings) if rows is None else len(rows)
    vectors = _empty((count, embeddings.shape[1]), scratch)
    for start in range(0, count, PIECE):
        taken = slice(start, start + PIECE) if rows is None else rows[start : start + PIECE]
        piece = np.asarray(embeddings[taken], np.float32)
        finite = np.isfinite(piece).all(axis=1)
        if not finite.all():
            first = start + int(np.flatnonzero(~finite)[0])
            raise ValueError(f"--embeddings: the vector of video '{ids[first]}' (row {first}) is not finite")
        vectors[start : start + PIECE] = at_length(piece)
    return vectors


def at_length(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """The rows [N, D] scaled to length NORM, in whole numbers; zeros stay zeros."""
    # Largest value first: the square of a large float16 would leave float32's range.
    largest = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True))
    scaled = rows / np.maximum(largest, np.finfo(rows.dtype).tiny)
    lengths = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    scaled *= NORM / np.maximum(lengths, 0.5)
    return np.rint(scaled, out=scaled)


def side_by_side(first: Vectors, second: Vectors, share: float, scratch: Path | None = None) -> Vectors:
    """Quantised vectors [N, D1 + D2] whose cosine is (1 - share) times the first one's plus share times the second's.
    Memory: as `quantise`.
    """
    out = _empty((len(first), first.shape[1] + second.shape[1]), scratch)
    weights = np.sqrt(1 - share), np.sqrt(share)
    for start in range(0, len(first), PIECE):
        pieces = [w * vectors[start : start + PIECE] for w, vectors in zip(weights, (first, second), strict=True)]
        out[start : start + PIECE] = at_length(np.hstack(pieces).astype(np.float32))
    return out


def project(vectors: Vectors, rng: np.random.Generator, scratch: Path | None = None) -> Vectors:
    """The vectors in fewer dimensions, int16 [N, PROJECTED] of length NORM, in which cosines are kept to about
    1 / sqrt(PROJECTED); the vectors themselves where that saves nothing. The first few columns alone do that as well.
    Memory: as `quantise`.
    """
    dim = vectors.shape[1]
    if dim < 2 * PROJECTED:
        return vectors
    signs = (2 * rng.integers(0, 2, size=(dim, PROJECTED)) - 1).astype(np.float32)
    out = _empty((len(vectors), PROJECTED), scratch)
    for start in range(0, len(vectors), PIECE):
        out[start : start + PIECE] = at_length(vectors[start : start + PIECE].astype(np.float32) @ signs)
    return out


def _empty(shape: tuple[int, int], scratch: Path | None) -> Vectors:
    if 2 * shape[0] * shape[1] <= IN_MEMORY:
        return np.empty(shape, np.int16)
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, np.int16, "w+", shape=shape)


def cohesions(vectors: Vectors, labels: Rows) -> NDArray[np.float64]:
    """Mean cosine of the members of each cluster to their mean, float64 [G] in [-1, 1]; labels below 0 are in none."""
    members = np.flatnonzero(labels >= 0)
    order = members[np.argsort(labels[members], kind="stable")]
    size = int(np.count_nonzero(labels == labels[order[0]]))
    found = []
    step = max(1, PIECE // size) * size
    for start in range(0, len(order), step):
        group = vectors[order[start : start + step]].astype(np.float32)
        total = group.reshape(-1, size, group.shape[1]).sum(axis=1)
        dots = np.einsum("gld,gd->gl", group.reshape(-1, size, group.shape[1]), total, dtype=np.float32)
        lengths = np.sqrt(np.square(group).sum(axis=1)).reshape(-1, size)
        lengths = lengths * np.sqrt(np.square(total).sum(axis=1))[:, None]
        found.append((dots / np.maximum(lengths, 1e-6)).mean(axis=1, dtype=np.float64))
    return np.concatenate(found)


def cohesion(vectors: Vectors, labels: Rows) -> float:
    """Mean cosine of each clustered vector to the mean of its cluster, in [-1, 1]."""
    return float(cohesions(vectors, labels).mean())


@one_blas_thread
def cohesion_bound(vectors: Vectors, size: int, seed: int) -> float:
    """What no clusters of `size` can exceed, up to the error of a sample of BOUND_SAMPLE vectors.

    The squared length of a cluster's sum is the sum of its members' cosines to each other, at most that of each
    member's own `size` nearest; by Cauchy-Schwarz over clusters, cohesion <= sqrt(mean of those sums / size).
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(vectors), min(BOUND_SAMPLE, len(vectors)), replace=False))
    sample = vectors[chosen].astype(np.float32)
    best = np.full((len(chosen), size), -np.inf, np.float32)
    for start in range(0, len(vectors), PIECE):
        cosines = sample @ vectors[start : start + PIECE].astype(np.float32).T
        both = np.concatenate([best, cosines], axis=1)
        best = np.partition(both, both.shape[1] - size, axis=1)[:, both.shape[1] - size :]
    return float(np.sqrt(max(best.sum(axis=1, dtype=np.float64).mean() / size, 0.0)) / NORM)


def cohesion_floor(vectors: Vectors) -> float:
    """What no clusters of equal size can be below: the length of the mean of all unit vectors (triangle inequality)."""
    total = np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), PIECE):
        total += vectors[start : start + PIECE].sum(axis=0, dtype=np.int64)
    return float(np.sqrt(np.square(total).sum()) / NORM / len(vectors))
