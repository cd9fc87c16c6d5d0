"""How cost grows with the number of frames: a training step, the LLM's part of it, and reading the frames.

    python benchmarks/bench_scaling.py --T 1..64

CPU-seconds and memory of one step (forward and backward of one example, config C of workload.py with T frames) for
each T, and the exponent of T: the slope of a line through the logarithms, over all T and over the last three. Memory is
what the step adds at its peak. There is no peer: an exponent of 1 is what is bought, 1.09 is what the older code had
between 8 and 16 frames.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import Several, doubling, measured, report
from workload import WORKLOADS, build_dataset, build_loader, build_model, write_clips

from prismatic.models.llm.attention import use_attention
from prismatic.models.vlm import PrismaticVLM
from prismatic.types import Batch

_MMAP_THRESHOLD = -3  # of mallopt


def exponent(frames: Sequence[int], costs: Sequence[float]) -> float:
    """Slope of log cost over log T."""
    return float(np.polyfit(np.log(frames), np.log(np.maximum(costs, 1e-9)), 1)[0])


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def step(vlm: PrismaticVLM, batch: Batch) -> None:
    """Forward and backward of one example."""
    loss = vlm(batch)
    (loss.loss_sum / loss.num_tokens).backward()
    vlm.zero_grad(set_to_none=True)


def llm_step(vlm: PrismaticVLM, batch: Batch) -> float:
    """CPU-seconds of a step whose visual tokens are there already."""
    with torch.no_grad():
        visual = vlm.encode(batch.frames, batch.frames_per_medium)
    vlm.encode = lambda frames, counts: visual.requires_grad_()  # type: ignore[method-assign]
    try:
        with measured() as cost:
            step(vlm, batch)
    finally:
        del vlm.encode
    return cost.cpu


def peak_of_step(vlm: PrismaticVLM, batch: Batch) -> float:
    """MiB that a step adds at its peak (Linux)."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back to the system, and is counted when it is used
    libc.malloc_trim(0)
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the high-water mark starts anew
    step(vlm, batch)
    return memory("VmHWM") - before


def costs_of(aggregator: str, T: int, repeats: int, peak: bool) -> dict[str, float]:
    """CPU-seconds of reading, of a step and of the LLM in it, or (peak) MiB."""
    vlm = build_model(replace(WORKLOADS["C"], num_frames=T), aggregator).train()
    use_attention(vlm.llm_backbone, "auto", torch.device("cpu"), half=False)
    with tempfile.TemporaryDirectory() as folder:
        loader = build_loader(build_dataset(vlm, write_clips(Path(folder) / "clips", [T])), 1)
        rows = []
        for _ in range(1 if peak else repeats + 1):  # the first is there to warm up
            with measured() as reading:
                (batch,) = next(iter(loader.iterate(0)))
            if peak:
                step(vlm, batch)
                return {"peak_mib": peak_of_step(vlm, batch)}
            with measured() as whole:
                step(vlm, batch)
            rows.append({"read_s": reading.cpu, "step_s": whole.cpu, "llm_s": llm_step(vlm, batch)})
    return {name: min(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    """Parse, measure, two lines for each aggregator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--T", action=Several, read=doubling, default=doubling("1..64"), help="frames of a clip")
    parser.add_argument("--aggregator", action=Several, default=["concat", "st-pool"], help="how frames become tokens")
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many counts")
    args = parser.parse_args()
    torch.set_num_threads(1)  # CPU-seconds of one core do not depend on how threads wait
    tables: dict[str, dict[str, list[float]]] = {aggregator: {} for aggregator in args.aggregator}
    for peak in (False, True):  # memory last: counting it makes what follows slower
        for aggregator, T in itertools.product(args.aggregator, args.T):
            for name, value in costs_of(aggregator, T, args.repeats, peak).items():
                tables[aggregator].setdefault(name, []).append(value)
    for aggregator, found in tables.items():
        slopes = {name: exponent(args.T, values) for name, values in found.items()}
        last = {name: exponent(args.T[-3:], values[-3:]) for name, values in found.items()}
        names = {"step_s": "step", "llm_s": "its LLM", "read_s": "reading", "peak_mib": "memory"}
        line = ", ".join(f"{said} {slopes[name]:.2f} ({last[name]:.2f})" for name, said in names.items())
        report(
            "scaling",
            f"{aggregator}, T {args.T[0]} to {args.T[-1]}: exponents over all (over the last three) {line}",
            aggregator=aggregator,
            frames=args.T,
            exponents=slopes,
            exponents_last=last,
            **{name: [round(value, 4) for value in values] for name, values in found.items()},
        )


if __name__ == "__main__":
    main()
