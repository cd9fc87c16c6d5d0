"""Clusters of exactly L: ours beside k-means-constrained, capacity-constrained greedy k-means and chance.

    python benchmarks/bench_cluster.py --n 8k,20k --L 2,8
    python benchmarks/bench_cluster.py --n 1M --kinds clips --repeats 1

Peers that cannot finish a size are left out and named: k-means-constrained above 8,000 vectors, greedy above 100,000.
The gate: every cluster exactly L, no video twice, none lost but the remainder.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import Cost, Several, amount, measured, peak_memory, report
from numpy.typing import NDArray

from prismatic.webvid.balanced import balanced_clusters
from prismatic.webvid.quantised import Vectors, cohesion, cohesion_bound, quantise

Labels = NDArray[np.int64]
PIECE = 16384
# Largest N that a peer is run at.
CONSTRAINED_UP_TO = 8_000
GREEDY_UP_TO = 100_000
GREEDY_STEPS = 100  # as the older system's max_iter


def embeddings(kind: str, count: int, dim: int, size: int, seed: int, file: Path) -> NDArray[np.float16]:
    """float16 [N, D] written to `file` and mapped from it, made piece by piece.

    clips: topics, scenes within topics, and clips around scenes, as embeddings of web videos lie. groups: a group of
    `size` about each of N / size directions. mix: about 100 around each direction. spectrum: one cloud with few strong
    directions. iso: one cloud without any, where there is next to nothing to find.
    """
    rng = np.random.default_rng(seed)
    out = np.lib.format.open_memmap(file, "w+", np.float16, (count, dim))
    topics = rng.standard_normal((max(1, count // 200), dim), np.float32)
    offset = rng.standard_normal(dim, np.float32)
    decay = np.arange(1, dim + 1, dtype=np.float32) ** np.float32(-0.7)
    number = {"clips": count // 10, "groups": -(-count // size), "mix": count // 100}.get(kind, 1)
    number = max(1, number)
    belongs = rng.integers(number, size=count)
    if kind == "groups":
        belongs = rng.permutation(np.repeat(np.arange(number), size)[:count])
    centres = np.empty((number, dim), np.float16)
    for start in range(0, number, PIECE):
        here = rng.standard_normal((min(PIECE, number - start), dim), np.float32)
        if kind == "clips":
            here = topics[rng.integers(len(topics), size=len(here))] + 0.8 * here
        centres[start : start + PIECE] = here
    for start in range(0, count, PIECE):
        noise = rng.standard_normal((min(PIECE, count - start), dim), np.float32)
        centre = centres[belongs[start : start + PIECE]].astype(np.float32)
        piece = {
            "clips": lambda c=centre, x=noise: c + 0.9 * x + offset,
            "groups": lambda c=centre, x=noise: c + x,
            "mix": lambda c=centre, x=noise: c + 0.7 * x,
            "spectrum": lambda x=noise: x * decay,
            "iso": lambda x=noise: x,
        }[kind]()
        out[start : start + PIECE] = piece / np.linalg.norm(piece, axis=1, keepdims=True)
    out.flush()
    return np.load(file, mmap_mode="r")


def ours(matrix: NDArray[np.float16], size: int, seed: int) -> Labels:
    """From embeddings on the disk to labels."""
    return balanced_clusters(quantise(matrix, range(len(matrix))), size, seed)


def constrained(matrix: NDArray[np.float16], size: int, seed: int) -> Labels:
    """k-means-constrained (minimum-cost flow), one initialisation, one process."""
    from k_means_constrained import KMeansConstrained

    model = KMeansConstrained(
        len(matrix) // size, size_min=size, size_max=size, n_init=1, max_iter=100, random_state=seed, n_jobs=1
    )
    return model.fit(matrix.astype(np.float32)).labels_.astype(np.int64)


def greedy(matrix: NDArray[np.float16], size: int, seed: int) -> Labels:
    """k-means whose every assignment fills clusters nearest pair first, up to L each (`k_means_fixed_n`)."""
    vectors = matrix.astype(np.float32)
    count, number = len(vectors), len(vectors) // size
    rng = np.random.default_rng(seed)
    centres = vectors[rng.choice(count, number, replace=False)]
    labels = np.zeros(count, np.int64)
    for _ in range(GREEDY_STEPS):
        found = _fill(vectors, centres, size)
        if (found == labels).all():
            break
        labels = found
        centres = vectors[np.argsort(labels, kind="stable")].reshape(number, size, -1).mean(axis=1)
    return labels


def _fill(vectors: NDArray[np.float32], centres: NDArray[np.float32], size: int) -> Labels:
    """Each vector in turn, the closest to any centre with room first; those whose nearest is full look again."""
    labels = np.full(len(vectors), -1, np.int64)
    room = np.full(len(centres), size)
    half = 0.5 * np.square(centres).sum(axis=1)
    waiting = np.arange(len(vectors))
    while len(waiting):
        open_now = np.flatnonzero(room)
        nearest, score = np.empty(len(waiting), np.int64), np.empty(len(waiting), np.float32)
        for start in range(0, len(waiting), 4096):
            scores = vectors[waiting[start : start + 4096]] @ centres[open_now].T - half[open_now]
            best = scores.argmax(axis=1)
            nearest[start : start + 4096] = open_now[best]
            score[start : start + 4096] = scores[np.arange(len(best)), best]
        order = np.lexsort((-score, nearest))
        of = nearest[order]
        first = np.searchsorted(of, of)
        taken = np.arange(len(of)) - first < room[of]
        labels[waiting[order[taken]]] = of[taken]
        np.subtract.at(room, of[taken], 1)
        waiting = np.sort(waiting[order[~taken]])
    return labels


def timed(run: Callable[[], Labels]) -> tuple[Labels, Cost]:
    """The labels and what they cost."""
    with measured() as cost:
        labels = run()
    return labels, cost


def check(labels: Labels, count: int, size: int) -> None:
    """Raises SystemExit when sizes are not exact, or a video is lost that the remainder does not explain."""
    sizes = np.bincount(labels[labels >= 0])
    if len(labels) != count or len(sizes) != count // size or set(sizes.tolist()) != {size}:
        raise SystemExit(f"sizes are not exactly {size}: {sorted(set(sizes.tolist()))}")


def run(kind: str, count: int, L: int, args: argparse.Namespace, folder: Path) -> Cost:
    """All that can be run at one size, and its two lines."""
    file = folder / f"{kind}.npy"
    matrix = embeddings(kind, count, args.d, L, args.seed, file)
    runs: dict[str, Callable[[], Labels]] = {"ours": lambda: ours(matrix, L, args.seed)}
    if count <= CONSTRAINED_UP_TO and "constrained" in args.peers and count % L == 0:
        runs["constrained"] = lambda: constrained(matrix, L, args.seed)
    if count <= GREEDY_UP_TO and "greedy" in args.peers and count % L == 0:
        runs["greedy"] = lambda: greedy(matrix, L, args.seed)
    # Ours takes turns with the peers and the median of its runs counts; peers run once, most of them for minutes.
    first = runs.pop("ours")
    repeated = [timed(first)]
    memory = peak_memory()  # before any peer has run
    found = {}
    for name, peer in runs.items():
        found[name] = timed(peer)
        repeated.append(timed(first))
    repeated += [timed(first) for _ in range(args.repeats - len(repeated))]
    if any((labels != repeated[0][0]).any() for labels, _ in repeated):
        raise SystemExit("two runs of one seed differ")
    repeated.sort(key=lambda pair: pair[1].cpu)
    found = {"ours": repeated[(len(repeated) - 1) // 2], **found}
    spread = [cost.cpu for _, cost in repeated]
    vectors: Vectors = quantise(matrix, range(count))
    values: dict[str, object] = {"ours_runs_cpu_s": [round(value, 3) for value in spread]}
    told = []
    for name, (labels, cost) in found.items():
        check(labels, count, L)
        worth = cohesion(vectors, labels)
        values |= {f"{name}_cpu_s": cost.cpu, f"{name}_wall_s": cost.wall, f"{name}_cohesion": worth}
        values[f"{name}_machine_busy"] = cost.busy
        told.append(f"{name} {cost.cpu:.2f} CPU-s, cohesion {worth:.4f}")
        if name != "ours":
            values[f"{name}_ratio"] = cost.cpu / found["ours"][1].cpu
            told[-1] += f" ({cost.cpu / found['ours'][1].cpu:.0f}x)"
    order = np.random.default_rng(args.seed).permutation(count)[: count // L * L]
    chance = np.full(count, -1, np.int64)
    chance[order] = np.arange(len(order)) // L
    values["random_cohesion"] = cohesion(vectors, chance)
    values["bound_cohesion"] = cohesion_bound(vectors, L, args.seed)
    told.append(f"random {values['random_cohesion']:.4f}, bound {values['bound_cohesion']:.4f}")
    absent = [p for p in args.peers if p not in found]
    line = f"{kind}, N={count:,}, D={args.d}, L={L}: {'; '.join(told)}; peak of ours {memory:.2f} GiB"
    line += f"; not run at this size: {', '.join(absent)}" if absent else ""
    setting = {"kind": kind, "n": count, "dim": args.d, "size": L, "seed": args.seed}
    report("cluster", line, **setting, **values, peak_gib=memory)
    file.unlink()
    return found["ours"][1]


def main() -> None:
    """Parse flags, run every kind at every size, and print the growth of ours over the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", action=Several, read=amount, default=[8000], help="numbers of vectors")
    parser.add_argument("--d", type=int, default=512, help="values of a vector")
    parser.add_argument("--L", action=Several, read=int, default=[8], help="videos of a cluster")
    parser.add_argument(
        "--kinds", action=Several, default=["clips"], choices=["clips", "groups", "mix", "spectrum", "iso"]
    )
    parser.add_argument("--peers", action=Several, default=["constrained", "greedy"], choices=["constrained", "greedy"])
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours at least; the median counts")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the vectors are written meanwhile")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for kind in args.kinds:
            for L in args.L:
                costs = [run(kind, count, L, args, Path(folder)) for count in sorted(args.n)]
                if len(costs) > 1:
                    sizes = np.log(sorted(args.n))
                    slope = float(np.polyfit(sizes, [math.log(cost.cpu) for cost in costs], 1)[0])
                    line = f"{kind}, L={L}: CPU-s grow as N^{slope:.2f}"
                    report("cluster-growth", line, kind=kind, size=L, n=args.n, exponent=slope)


if __name__ == "__main__":
    main()
