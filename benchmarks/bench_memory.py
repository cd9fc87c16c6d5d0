"""Memory of a training step by visual tokens: ours beside the plain reference step, both with recomputed layers.

    python benchmarks/bench_memory.py --T 8,32

Each step runs in a process of its own, on one clip, and tells the largest memory it had. The slope over the numbers of
frames is what one more visual token costs; the rest (PyTorch, weights, AdamW) is the same for any clip. The gate: both
sides have the same loss. How many frames fit into --gib is the line drawn on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from common import Several, peak_memory, report
from workload import WORKLOADS

LOSS_GATE = 1e-5
CONFIG = "C"


def child(side: str, frames: int, recompute: str) -> None:
    """One step of one side; prints its loss, its peak memory in GiB, and the visual tokens."""
    from bench_train import Ours
    from reference import Reference, read_batch
    from workload import build_dataset, build_loader, build_model, records_of, write_clips

    from prismatic import dist

    workload = replace(WORKLOADS[CONFIG], num_frames=frames, batch=1)
    vlm = build_model(workload)
    with tempfile.TemporaryDirectory() as folder:
        data = build_dataset(vlm, write_clips(Path(folder), [frames]))
        if side == "ours":
            ours = Ours(vlm, dist.start("cpu"), recompute)
            loss = ours.step(next(build_loader(data, 1).iterate(0)))
            dist.stop(ours)
        else:
            loss = Reference(vlm).step(read_batch(data, records_of(data)))
    print(json.dumps({"loss": loss, "gib": peak_memory(), "tokens": data.tokens_per_clip(frames)}))


def measure(side: str, frames: int, recompute: str) -> dict[str, float]:
    """What `child` says, from a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", side, "--T", str(frames)]
    done = subprocess.run([*command, "--recompute", recompute], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} with {frames} frames failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def slope(small: dict[str, float], large: dict[str, float]) -> float:
    """MB that a visual token adds."""
    return (large["gib"] - small["gib"]) * 2**30 / 1e6 / (large["tokens"] - small["tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--T", action=Several, read=int, default=[8, 32], help="the fewest and the most frames")
    parser.add_argument("--recompute", default="full", choices=["none", "selective", "full"], help="ours")
    parser.add_argument("--gib", type=float, default=20.0)
    parser.add_argument("--child", choices=["ours", "reference"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.T[0], args.recompute)
    few, many = min(args.T), max(args.T)
    if few == many:
        parser.error("--T takes two different numbers")
    found = {side: [measure(side, n, args.recompute) for n in (few, many)] for side in ("ours", "reference")}
    worst = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(*found.values(), strict=True))
    ours, peer = slope(*found["ours"]), slope(*found["reference"])
    per_frame = found["ours"][1]["tokens"] / many
    fits = {}
    for side, each in (("ours", ours), ("reference", peer)):
        left = (args.gib - found[side][1]["gib"]) * 2**30 / 1e6 / each
        fits[side] = int((found[side][1]["tokens"] + left) / per_frame)
    ratio = peer / ours if worst <= LOSS_GATE else None
    said = f"{ratio:.1f}x less" if ratio else f"NOT EQUAL (losses {worst:.1e}): no ratio"
    report(
        "memory",
        f"memory ({args.recompute} recomputed): {ours:.3f} MB a visual token, the reference {peer:.3f}: {said}; "
        f"{fits['ours']} instead of {fits['reference']} frames in {args.gib:g} GiB",
        ratio=ratio,
        mb_per_token=ours,
        peer_mb_per_token=peer,
        gib={side: [round(m["gib"], 2) for m in each] for side, each in found.items()},
        frames=[few, many],
        frames_that_fit=fits,
        recompute=args.recompute,
        loss_difference=f"{worst:.1e}",
    )


if __name__ == "__main__":
    main()
