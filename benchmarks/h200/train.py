"""A training step of a real size on a GPU: ours beside the plain reference step, in examples a second, MFU and memory.

    python benchmarks/h200/train.py --config 7b,0.5b --aggregator concat,stpool
    python benchmarks/h200/train.py --config tiny --device cpu        # does it run

Weights are random, of published shapes; computing is in bf16 over fp32 weights on both sides. Ours first, then, when
its memory is free again, the reference with all visual tokens: fp32 moments, every layer recomputed, logits of every
position. Batches wait in memory, so that it is the GPU that is measured. The gate: the losses of all steps agree to
2e-3 (bf16), or no ratio. With an aggregator other than concat the gate is a plain implementation of it, in a step of
its own, and the ratio is over another model, which the line says.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_train import Ours
from common import Several, report, wait
from reference import Reference, ReferenceBatch, read_batch
from workload import AGGREGATORS, WORKLOADS, Workload, build_dataset, build_loader, build_model, records_of, write_clips

from prismatic import dist
from prismatic.train.flops import count_flops, peak_flops

LOSS_GATE = {"cuda": 2e-3, "cpu": 1e-5}
BETAS = {"adamw": (0.9, 0.999), "adamw-bf16": (0.9, 0.95)}
"""Of our optimizers; the reference takes the same."""


class HalfReference(Reference):
    """The reference on a GPU: products in bf16, sums, norms and loss as autocast has them."""

    def step(self, batch: ReferenceBatch) -> float:
        """One optimizer step. Returns the loss."""
        device = next(self.vlm.parameters()).device
        half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
        with half:
            return super().step(batch.to(device))


@dataclass
class Side:
    """Losses and wall seconds of the steps of one side, and the most memory that it had, GB."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gigabytes: float | None = None

    @property
    def best(self) -> float:
        """Seconds of the fastest step; the first one warms up."""
        return min(self.seconds[1:] or self.seconds)


def timed(step: Callable[[int], float], steps: int, device: torch.device) -> Side:
    """`steps` steps, each waited for."""
    side = Side()
    for number in range(steps):
        wait(device)
        began = time.perf_counter()
        side.losses.append(step(number))
        wait(device)
        side.seconds.append(time.perf_counter() - began)
    if device.type == "cuda":
        side.gigabytes = torch.cuda.max_memory_allocated(device) / 1e9
    return side


def _forget(device: torch.device) -> None:
    """What a side had is not in the memory of the next."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def ours(workload: Workload, aggregator: str, annotations: Path, args: argparse.Namespace) -> tuple[Side, float]:
    """Our steps, and the useful FLOPs of one of them."""
    name, options = AGGREGATORS[aggregator]
    device = args.world.device
    _forget(device)
    vlm = build_model(workload, name, device=device, **options)
    batches = list(build_loader(build_dataset(vlm, annotations), workload.batch, packing=True).iterate(0))
    counter = count_flops(vlm)
    run = Ours(vlm, args.world, args.recompute, args.compile, args.optimizer)
    side = timed(lambda n: run.step(batches[n]), args.steps, device)
    return side, counter.step_flops(batches[-1]) if counter is not None else 0.0


def reference(workload: Workload, aggregator: str, annotations: Path, args: argparse.Namespace) -> Side:
    """The plain steps of a model with this aggregator."""
    name, options = AGGREGATORS[aggregator]
    device = args.world.device
    _forget(device)
    vlm = build_model(workload, name, device=device, **options)
    data = build_dataset(vlm, annotations)
    rows, each = records_of(data), workload.batch
    batches = [read_batch(data, rows[n * each : (n + 1) * each]) for n in range(args.steps)]
    peer = HalfReference(vlm, aggregate=aggregator, betas=BETAS[args.optimizer])
    return timed(lambda n: peer.step(batches[n]), args.steps, device)


def measure(config: str, aggregator: str, args: argparse.Namespace) -> None:
    """One configuration: the gate, two lines."""
    workload, device = WORKLOADS[config], args.world.device
    with tempfile.TemporaryDirectory() as folder:
        annotations = write_clips(Path(folder), [workload.num_frames] * workload.batch * args.steps)
        mine, flops = ours(workload, aggregator, annotations, args)
        peer = reference(workload, "concat", annotations, args)
        same = peer if aggregator == "concat" else reference(workload, aggregator, annotations, args)
    worst = max(abs(a - b) / b for a, b in zip(mine.losses, same.losses, strict=True))
    equal = worst <= LOSS_GATE[device.type]
    peak = peak_flops(device, args.peak_tflops)
    rates = [workload.batch / side.best for side in (mine, peer)]
    ratio = rates[0] / rates[1] if equal else None
    mfu = flops / mine.best / peak if peak else None
    told = f"{rates[0]:.2f} examples/s" + (f", MFU {mfu:.1%}" if mfu else "")
    told += f", {mine.gigabytes:.1f} GB" if mine.gigabytes else ""
    other = " with all visual tokens (another model)" if aggregator != "concat" else ""
    told += f"; the reference{other} {rates[1]:.2f}"
    told += f": {ratio:.2f}x" if ratio else f"; NOT EQUAL (losses {worst:.1e}): no ratio"
    report(
        "h200-train",
        f"{config} {aggregator}, {workload.num_frames} frames: {told}",
        config=config,
        aggregator=aggregator,
        ratio=ratio,
        examples_per_s=rates[0],
        peer_examples_per_s=rates[1],
        mfu=mfu,
        gigabytes=mine.gigabytes,
        peer_gigabytes=peer.gigabytes,
        loss_difference=f"{worst:.1e}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        recompute=args.recompute,
        compiled=args.compile,
        optimizer=args.optimizer,
    )


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action=Several, default=["7b", "0.5b"], choices=list(WORKLOADS))
    parser.add_argument("--aggregator", action=Several, default=["concat", "stpool"], choices=list(AGGREGATORS))
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each side; the best one counts")
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "full"], help="ours")
    parser.add_argument("--compile", action="store_true", help="ours: torch.compile per block (more --steps then)")
    parser.add_argument(
        "--optimizer",
        default="adamw-bf16",
        choices=list(BETAS),
        help="ours; fp32 moments of 7b leave too little room",
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--peak_tflops", type=float, help="of the device, where its name is not known")
    args = parser.parse_args()
    args.world = dist.start(args.device)
    for config in args.config:
        for aggregator in args.aggregator:
            measure(config, aggregator, args)
    dist.stop()


if __name__ == "__main__":
    main()
