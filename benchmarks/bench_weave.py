"""Weaving N clips in clusters of L: `webvid.py weave`, from files to a file, beside the older loop.

    python benchmarks/bench_weave.py --n 80k --loop_n 4k,8k
    python benchmarks/bench_weave.py --n 10M --loop_n

Beside it: weaving while training (`--dataset.weave`), CPU-seconds of an epoch's start and of each example.

The older loop scans all clips for each cluster and all captions for each clip, so its time grows as N^2: it is run at
the sizes of --loop_n and no figure of it is extrapolated. The gate: at each of those sizes both give the same rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from common import Several, amount, measured, peak_memory, report

from prismatic.conf.webvid import WeaveConfig
from prismatic.webvid.catalog import SCHEMA
from prismatic.webvid.files import write_rows
from prismatic.webvid.weave import weave

PIECE = 200_000
FRAMES = 16
DRAWN = 2000  # examples of an epoch that are timed


def caption(i: int) -> str:
    """About as long as those of WebVid."""
    return f"aerial view of scene {i}, slow motion of people walking along the river at sunset"


def make_input(folder: Path, count: int, size: int, seed: int) -> None:
    """catalog.parquet and clusters.json of `count` clips, written piece by piece."""
    with pyarrow.parquet.ParquetWriter(folder / "catalog.parquet", SCHEMA) as writer:
        for start in range(0, count, PIECE):
            rows = range(start, min(count, start + PIECE))
            columns: dict[str, Any] = {
                "id": [f"{i:010}" for i in rows],
                "path": [f"p{i % 1000}/{i:010}.mp4" for i in rows],
                "caption": [caption(i) for i in rows],
            }
            facts = {"duration": 10.0, "num_frames": 300, "fps": 30.0, "width": 596, "height": 336, "status": "ok"}
            for name in SCHEMA.names:
                columns.setdefault(name, [facts.get(name)] * len(rows))
            writer.write_table(pyarrow.Table.from_pydict(columns, schema=SCHEMA))
    order = np.random.default_rng(seed).permutation(count)[: count // size * size]
    write_rows(
        folder / "clusters.json",
        (
            {"video_id": f"{i:010}", "caption": caption(i), "cluster": str(place // size)}
            for place, i in enumerate(order.tolist())
        ),
    )


def ours(folder: Path, seed: int) -> None:
    """Writes woven.json."""
    weave(
        WeaveConfig(
            clusters=folder / "clusters.json",
            catalog=folder / "catalog.parquet",
            total_frames=FRAMES,
            form="joined",
            output=folder / "woven.json",
            seed=seed,
        )
    )


def while_training(folder: Path, size: int, seed: int) -> tuple[float, float]:
    """CPU-seconds of (an epoch's start, each of its examples), of clusters from the file; the second epoch counts."""
    from prismatic.conf.data import DatasetConfig, OnlineWeaveConfig
    from prismatic.webvid.online import weave_epochs  # with PyTorch, which is no part of the tool's memory

    options = OnlineWeaveConfig(videos_per_example=size, method="visual", clusters=folder / "clusters.json")
    data = DatasetConfig(finetune_stage_components=(folder / "catalog.parquet", folder), weave=options)
    epochs = weave_epochs(data, "finetune", seed=seed, num_frames=FRAMES)
    for epoch in range(2):
        with measured() as start:
            rows = epochs[epoch]
            rows[0]
        count = min(DRAWN, len(rows))
        with measured() as drawing:
            for at in range(count):
                rows[at]
    return start.cpu, drawing.cpu / count


def older_loop(folder: Path, size: int, seed: int) -> list[dict[str, Any]]:
    """The rows, by filters over whole lists for every cluster and every clip; drawn orders are those of ours."""
    clusters = json.loads((folder / "clusters.json").read_text())
    catalog = pyarrow.parquet.read_table(folder / "catalog.parquet", columns=["id", "path", "caption"]).to_pylist()
    rng = np.random.default_rng([seed, 0])
    names = sorted({row["cluster"] for row in clusters}, key=int)
    rows = []
    for place in rng.permutation(len(names)).tolist():
        ids = [row["video_id"] for row in clusters if row["cluster"] == names[place]]
        assert len(ids) == size
        ids = [ids[i] for i in rng.permutation(size).tolist()]
        clips = [[row for row in catalog if row["id"] == i][0] for i in ids]  # noqa: RUF015  it scanned to the end
        rows.append(
            {
                "id": ", ".join(ids),
                "videos": [clip["path"] for clip in clips],
                "num_frames_per_video": FRAMES // size,
                "conversations": [
                    {"from": "human", "value": "<video>\n" * size + "Describe what is happening in the video."},
                    {"from": "gpt", "value": ". ".join(clip["caption"] for clip in clips) + "."},
                ],
            }
        )
    return rows


def run(count: int, args: argparse.Namespace, with_loop: bool) -> None:
    """One size: ours, the loop where it is asked for, the gate, and the two lines."""
    values: dict[str, Any] = {"n": count, "size": args.L}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_input(folder, count, args.L, args.seed)
        with measured() as cost:
            ours(folder, args.seed)
        values |= {"ours_cpu_s": cost.cpu, "ours_wall_s": cost.wall, "peak_gib": peak_memory()}
        line = f"N={count:,}, L={args.L}: ours {cost.cpu:.2f} CPU-s"
        if with_loop:
            with measured() as slow:
                rows = older_loop(folder, args.L, args.seed)
            if json.loads((folder / "woven.json").read_text()) != rows:
                raise SystemExit("the older loop's rows are not ours")
            values |= {"loop_cpu_s": slow.cpu, "loop_ratio": slow.cpu / cost.cpu, "identical": True}
            line += f"; older loop {slow.cpu:.2f} CPU-s ({slow.cpu / cost.cpu:.0f}x), identical rows"
        start, each = while_training(folder, args.L, args.seed)
        values |= {"online_epoch_cpu_s": start, "online_example_cpu_s": each}
        line += f"; {values['peak_gib']:.2f} GiB"
        line += f"; while training {1e3 * start:.1f} ms an epoch, {1e6 * each:.0f} us an example"
        report("weave", line, **values)


def main() -> None:
    """Parse flags and run the sizes, small ones first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", action=Several, read=amount, default=[80000], help="clips, ours alone")
    parser.add_argument(
        "--loop_n", action=Several, read=amount, default=[4000, 8000], help="clips, beside the older loop"
    )
    parser.add_argument("--L", type=int, default=8, help="videos of a cluster; divides 16")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the files are written meanwhile")
    args = parser.parse_args()
    if FRAMES % args.L:
        parser.error(f"--L must divide {FRAMES}")
    for count in sorted({*args.n, *args.loop_n}):
        run(count, args, count in args.loop_n)


if __name__ == "__main__":
    main()
