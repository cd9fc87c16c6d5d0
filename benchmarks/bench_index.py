"""Annotations of many rows: ours beside json.load, as the older code read them.

    python benchmarks/bench_index.py --n 200k,1M

A file of JSON rows like those of WebVid is written, and each side is measured in a process of its own: seconds to open
it, memory a row, seconds until the first step of an epoch is planned, and until a step in the middle of a later epoch
is. Ours makes its index once; that is told apart. The gate: rows drawn at random are equal on both sides, and a step
that is sought equals the one that is come to.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Several, amount, measured, report

GLOBAL_BATCH, PER_DEVICE = 256, 8
PEER_UP_TO = 1_000_000  # rows; it takes some 2.5 KB each


def write_rows(path: Path, rows: int) -> None:
    """A JSON list of rows with one video each, and captions of 5 to 60 words, one row a line."""
    rng = random.Random(0)
    words = ["a", "red", "circle", "slowly", "moves", "over", "the", "field", "while", "people", "watch", "quietly"]
    captions = [" ".join(rng.choices(words, k=rng.randint(5, 60))) for _ in range(997)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            said = [
                {"from": "human", "value": "<video>\nDescribe what is happening in the video."},
                {"from": "gpt", "value": f"{captions[i % 997]} {i}"},
            ]
            row = {"id": f"{i:09d}", "video": f"{i % 1000:03d}/{i:09d}.mp4", "conversations": said}
            file.write(("[\n" if i == 0 else ",\n") + json.dumps(row))
        file.write("\n]\n")


def resident() -> int:
    """Bytes of memory that this process has now (Linux)."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * 4096


def ours(path: Path, rows: int) -> dict[str, Any]:
    """Open, plan, seek."""
    import numpy as np

    from prismatic.data.annotations import load_records
    from prismatic.data.dataset import ClipDataset, MediaReader
    from prismatic.data.loader import StepLoader
    from prismatic.models.llm.tokenizer import train_tokenizer
    from prismatic.prompting import TEMPLATES
    from prismatic.types import ImageSpec

    tokenizer = train_tokenizer(["Describe what is happening in the video."] * 9, 300)
    reader, template = MediaReader(num_frames=8, image_spec=ImageSpec(resolution=224)), TEMPLATES.get("pure")
    gc.collect()
    before = resident()
    with measured() as opening:
        records = load_records(path, path.parent)
    with measured() as starting:
        data = ClipDataset(
            *([records], reader, template, tokenizer, "after-bos", 2048), tokens_per_clip=lambda frames: frames * 64
        )
        loader = StepLoader(data, len, data.num_examples, GLOBAL_BATCH, PER_DEVICE, packing=True)  # type: ignore[arg-type]
        first = next(loader.positions(0))
    middle, each = loader.steps_per_epoch(1) // 2, loader.micro_batches
    with measured() as seeking:
        sought = next(loader.positions(1, middle))
    kept = resident() - before
    with measured() as planning:
        places = loader.positions(1, max(0, middle - 100))
        come_to = [next(places) for _ in range(min(middle, 100) * each + 1)][-1]
    assert come_to == sought and len(first) > 0
    index = records._rows.index  # type: ignore[attr-defined]
    for at in range(0, rows, 4096):  # every page is touched
        data.lengths(np.arange(at, min(at + 4096, rows)))
        index.start[at : at + 4096].sum(), index.size[at : at + 4096].sum()
    touched = resident() - before
    return {
        **{"open_s": opening.wall, "open_cpu_s": opening.cpu, "epoch_start_s": starting.wall, "seek_s": seeking.wall},
        "bytes_per_row": kept / rows,
        "bytes_per_row_all_touched": touched / rows,
        "planned_per_cpu_s": min(middle, 100) * GLOBAL_BATCH / planning.cpu,
        "rows": {str(i): records[i].turns[1].text for i in random.Random(1).sample(range(rows), 200)},
    }


def peer(path: Path, rows: int) -> dict[str, Any]:
    """The older way: the file as Python objects; lengths and a length-grouped order of the whole epoch up front."""
    gc.collect()
    before = resident()
    with measured() as opening, path.open(encoding="utf-8") as file:
        records = json.load(file)
    with measured() as starting:
        lengths = [sum(len(turn["value"].split()) for turn in row["conversations"]) for row in records]
        order = list(range(rows))
        random.Random(0).shuffle(order)
        large = [order[i : i + GLOBAL_BATCH] for i in range(0, rows, GLOBAL_BATCH)]
        order = [i for batch in large for i in sorted(batch, key=lambda i: -lengths[i])]
    assert len(order) == rows
    return {
        **{"open_s": opening.wall, "open_cpu_s": opening.cpu, "epoch_start_s": starting.wall},
        "bytes_per_row": (resident() - before) / rows,
        "rows": {str(i): records[i]["conversations"][1]["value"] for i in random.Random(1).sample(range(rows), 200)},
    }


def apart(side: str, path: Path, rows: int) -> dict[str, Any]:
    """What a side measures, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, str(path), "--n", str(rows)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(rows: int) -> None:
    """One size: write, measure both, gate, tell."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        write_rows(path, rows)
        size = path.stat().st_size / 1e6
        building, found = apart("ours", path, rows), apart("ours", path, rows)
        old = apart("peer", path, rows) if rows <= PEER_UP_TO else None
    texts = found.pop("rows")
    if old is not None and old.pop("rows") != texts:
        raise SystemExit("the rows differ: no ratio")
    line = (
        f"{rows:,} rows ({size:,.0f} MB): opened in {found['open_s']:.3f} s (index made once in "
        f"{building['open_s']:.1f} s, {1e6 * building['open_cpu_s'] / rows:.1f} CPU-us a row), first step planned in "
        f"{found['epoch_start_s']:.3f} s, sought in {1000 * found['seek_s']:.1f} ms, {found['bytes_per_row']:.1f} B a "
        f"row in memory ({found['bytes_per_row_all_touched']:.1f} when all is touched), "
        f"{found['planned_per_cpu_s'] / 1e6:.2f} M examples planned a CPU-s"
    )
    if old is not None:
        memory, order = old["bytes_per_row"], old["epoch_start_s"]
        line += f"; json.load: {old['open_s']:.2f} s, {memory:.0f} B a row in memory, order {order:.2f} s"
    else:
        line += "; json.load not run: it would take some GB"
    peer_values = {f"peer_{name}": value for name, value in (old or {}).items()}
    report("index", line, n=rows, megabytes=size, index_s=building["open_s"], **found, **peer_values)


def main() -> None:
    """Parse flags; one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--n", action=Several, read=amount, default=[200_000, 1_000_000], help="rows; 10M take 12 minutes"
    )
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FILE"), help="measure one side in this process")
    args = parser.parse_args()
    if args.side:
        side, path = args.side
        print(json.dumps({"ours": ours, "peer": peer}[side](Path(path), args.n[0])))
        return
    for rows in args.n:
        compare(rows)


if __name__ == "__main__":
    main()
