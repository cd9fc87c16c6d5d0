"""Which vectors, and which clusters, are worked on together: cuts across principal directions, and cells that grow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prismatic.webvid.quantised import NORM, PIECE, Rows, Vectors, at_length

DIRECTION_SAMPLE = 4096  # vectors that the principal direction is computed from
POWER_STEPS = 8
CUT_AT = (0.35, 0.65)  # share of the vectors on the nearer side of a cut; drawn, so that each pass has other borders
DESIRE_PIECE = 1024
CENTRES = 4096  # of regions, at most; cells are made of whole regions but for their ends
A_REGION = 128  # rows of a region, at least
A_CENTRE = 32  # vectors that a centre is trained on, up to TRAINED_ON of all or, of more, one in ONE_IN
TRAINED_ON = 65_536
ONE_IN = 20
TRAINING_STEPS = 5
COMPARED = 1024  # rows compared with all centres at a time: more would not stay in a cache


def regional_cells(vectors: Vectors, rows: Rows, size: int, cell_size: int, rng: np.random.Generator) -> list[Rows]:
    """`rows`, a multiple of `size`, in cells of at most `cell_size` of them, each a multiple of `size`.

    Each row goes to the nearest of CENTRES directions, trained as spherical k-means on a sample; regions are lined up
    so that neighbours follow each other, and the line is cut into equal pieces. Unlike cuts across one direction, this
    keeps small groups whole where there are many of them. Another state of `rng` gives other borders.
    """
    if len(rows) <= max(cell_size, size):
        return [rows]
    near, centres = _regions(vectors, rows, rng)
    line = np.concatenate(list(cut(centres.astype(np.int16), np.arange(len(centres)), 1, 1, rng)))
    place = np.empty(len(centres), np.int64)
    place[line] = np.arange(len(centres))
    order = rows[np.argsort(place[near], kind="stable")]
    groups = len(rows) // size
    count = -(-groups // (cell_size // size))
    ends = size * (groups * np.arange(1, count) // count)
    return [np.sort(cell) for cell in np.split(order, ends)]


def _regions(vectors: Vectors, rows: Rows, rng: np.random.Generator) -> tuple[Rows, NDArray[np.float32]]:
    """(number of the nearest centre for each of the rows [n], centres [C, D] in whole numbers)."""
    number = max(2, min(CENTRES, len(rows) // A_REGION))
    trained_on = max(min(len(rows), TRAINED_ON, number * A_CENTRE), len(rows) // ONE_IN)
    sample = vectors[np.sort(rng.choice(rows, trained_on, replace=False))]
    centres = sample[rng.choice(len(sample), number, replace=False)].astype(np.float32)
    for _ in range(TRAINING_STEPS):
        near = _nearest(sample, np.arange(len(sample)), centres)
        ends = np.cumsum(np.bincount(near, minlength=number))[:-1]
        for centre, members in enumerate(np.split(np.argsort(near, kind="stable"), ends)):
            if len(members):
                centres[centre] = sample[members].sum(axis=0, dtype=np.int64)
        centres = at_length(centres.astype(np.float64)).astype(np.float32)
    return _nearest(vectors, rows, centres), centres


def _nearest(vectors: Vectors, rows: Rows, centres: NDArray[np.float32]) -> Rows:
    """For each of the rows the number of the nearest centre, int64 [n]."""
    starts = range(0, len(rows), COMPARED)
    return np.concatenate(
        [(vectors[rows[i : i + COMPARED]].astype(np.float32) @ centres.T).argmax(axis=1) for i in starts]
    )


def cut(vectors: Vectors, rows: Rows, size: int, cell_size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """`rows`, a multiple of `size`, in cells of at most `cell_size`, each a multiple of `size`, alike ones together."""
    stack = [rows]
    while stack:
        rows = stack.pop()
        if len(rows) <= max(cell_size, size):
            yield rows
            continue
        near, far = _halves(vectors, rows, size, rng)
        stack += [far, near]


def _halves(vectors: Vectors, rows: Rows, size: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Both sides of a cut across the principal direction, at a multiple of `size` somewhere around the middle."""
    sample = rows if len(rows) <= DIRECTION_SAMPLE else np.sort(rng.choice(rows, DIRECTION_SAMPLE, replace=False))
    direction = _principal_direction(vectors[sample].astype(np.float32), rng)
    heights = likeness(vectors, rows, direction)
    order = rows[np.argsort(heights, kind="stable")]
    groups = len(rows) // size
    middle = size * min(max(1, round(groups * rng.uniform(*CUT_AT))), groups - 1)
    return np.sort(order[:middle]), np.sort(order[middle:])


def likeness(vectors: Vectors, rows: Rows, direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dot products float32 [n] of the rows with a direction in whole numbers."""
    pieces = [vectors[rows[i : i + PIECE]].astype(np.float32) @ direction for i in range(0, len(rows), PIECE)]
    return np.concatenate(pieces)


def as_direction(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    """The vector [D] at length NORM in whole numbers; zero stays zero."""
    vector = vector / max(float(np.abs(vector).max()), 1e-300)
    return np.rint(vector * (NORM / max(float(np.sqrt(np.square(vector).sum())), 0.5))).astype(np.float32)


def _principal_direction(sample: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Direction of greatest variance by power iteration, in whole numbers of length NORM.

    Sums over the sample are exact too: heights below 2**23 times values below 2**12 over 2**12 rows stay below 2**53.
    """
    transposed = sample.astype(np.float64).T
    direction = as_direction(rng.standard_normal(sample.shape[1]))
    for _ in range(POWER_STEPS):
        heights = (sample @ direction).astype(np.float64)
        before = direction
        direction = as_direction(transposed @ (heights - np.rint(heights.mean())))
        if not direction.any():
            return before
    return direction


def cells_of_clusters(
    members: NDArray[np.float32], clusters: Rows, directions: NDArray[np.float32], cap: int, rng: np.random.Generator
) -> list[list[int]]:
    """Numbers of clusters in cells of `cap`: those together whose members are nearest to the other one's mean.

    members: whole numbers [n, D] in the order of `clusters` flattened. directions: of the means, [G, D], length NORM.
    """
    num_groups, size = clusters.shape
    label = np.repeat(np.arange(num_groups), size)
    wanted = np.empty(len(label), np.int64)
    for start in range(0, len(label), DESIRE_PIECE):
        near = members[start : start + DESIRE_PIECE] @ directions.T
        near[np.arange(len(near)), label[start : start + DESIRE_PIECE]] = -np.inf
        wanted[start : start + DESIRE_PIECE] = near.argmax(axis=1)
    return _grow(label, wanted, num_groups, cap, rng)


def _grow(source: Rows, target: Rows, num_groups: int, cap: int, rng: np.random.Generator) -> list[list[int]]:
    """Cells of `cap` nodes each (the last one may be smaller), grown along the edges that occur most often."""
    both = np.concatenate([source * num_groups + target, target * num_groups + source])
    edges, counts = np.unique(both, return_counts=True)
    source, target = np.divmod(edges, num_groups)
    order = np.lexsort((target, -counts, source))
    begins = np.searchsorted(source, np.arange(num_groups + 1)).tolist()
    neighbours = target[order].tolist()
    used = [False] * num_groups
    cells: list[list[int]] = []
    cell: list[int] = []
    for start in rng.permutation(num_groups).tolist():
        queue = [] if used[start] else [start]
        at = 0
        while at < len(queue):
            node = queue[at]
            at += 1
            if used[node]:
                continue
            used[node] = True
            cell.append(node)
            if len(cell) == cap:
                cells.append(cell)
                cell = []
                break
            queue += [n for n in neighbours[begins[node] : begins[node + 1]] if not used[n]]
    return [*cells, cell] if cell else cells
