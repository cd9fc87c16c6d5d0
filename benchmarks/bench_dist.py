"""What spreading over processes costs: FSDP2 in one process beside the plain module, and two gloo processes.

    python benchmarks/bench_dist.py                       # configuration A, a few minutes
    python benchmarks/bench_dist.py --config tiny --nproc 1,2

The gate: the gradients of a step are the same, to 1e-6 of the largest of each weight, from the plain module, from one
process and from two, over examples of unlike lengths (1, 2 and 4 frames). Imbalance is measured twice: positions that
the loader gives to two processes over an epoch of mixed 1/4/8/16 frames, and CPU-seconds of the two processes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Several, best_of, report  # first: it quietens threads that wait
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from workload import WORKLOADS, build_dataset, build_model, trained, write_clips

from prismatic import dist
from prismatic.conf.models import ModelConfig, StageConfig
from prismatic.data import plan
from prismatic.data.loader import StepLoader
from prismatic.data.order import EpochOrder
from prismatic.data.pack import collate
from prismatic.models.llm.attention import use_attention
from prismatic.train import fsdp
from prismatic.train.optim import build_optimizer
from prismatic.train.signals import StopSignals
from prismatic.train.step import Stepper
from prismatic.types import Batch

FRAMES = (1, 4, 2, 4, 1, 4, 4, 2)
GLOBAL, PER_DEVICE = 4, 2
TOLERANCE = 1e-6
Gradients = dict[str, torch.Tensor]
Steps = list[list[Batch]]


def stage() -> StageConfig:
    """A finetune stage with steps of GLOBAL examples."""
    model = ModelConfig(finetune_global_batch_size=GLOBAL, finetune_per_device_batch_size=PER_DEVICE)
    return model.stage("finetune")


def prepared(config: str) -> Any:
    """The model of a configuration, with the attention of a run on this machine."""
    vlm = build_model(WORKLOADS[config])
    use_attention(vlm.llm_backbone, "auto", torch.device("cpu"), half=False)
    return vlm


def read_steps(vlm: Any, folder: Path, world: dist.World) -> Steps:
    """This process's micro-batches of each step, read before anything is measured."""
    dataset = build_dataset(vlm, folder / "clips.json")
    loader = StepLoader(
        dataset,
        lambda examples: collate(examples, pad_token_id=dataset.tokenizer.pad_token_id, packing=True),
        num_examples=dataset.num_examples,
        global_batch_size=GLOBAL,
        per_device_batch_size=PER_DEVICE,
        rank=world.rank,
        world_size=world.world_size,
        packing=True,
    )
    return list(loader.iterate(0))


class PlainSteps:
    """Steps of the module as it is: the peer."""

    def __init__(self, vlm: Any) -> None:
        self.vlm, self.stage = vlm, stage()
        self.optimizer = build_optimizer(vlm, self.stage)

    def backward(self, batches: list[Batch]) -> None:
        """Gradients of the mean loss over the label tokens of all micro-batches."""
        tokens = sum(batch.num_label_tokens for batch in batches)
        for batch in batches:
            (self.vlm(batch).loss_sum / tokens).backward()

    def step(self, batches: list[Batch]) -> None:
        """One optimizer step."""
        self.backward(batches)
        nn.utils.clip_grad_norm_(list(trained(self.vlm).values()), self.stage.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


class ShardedSteps:
    """Ours: the same under FSDP2."""

    def __init__(self, vlm: Any, world: dist.World) -> None:
        shard = {"mixed_precision": False, "reduce_fp32": True, "recompute": "none"}
        self.vlm = fsdp.shard(vlm, world, "fsdp-full-shard", **shard)
        self.stepper = Stepper(self.vlm, build_optimizer(self.vlm, stage()), stage(), world, StopSignals())

    def backward(self, batches: list[Batch]) -> Any:
        """Gradients of the mean loss over the label tokens of all micro-batches of all processes."""
        return self.stepper.backward(batches, self.stepper.count(batches).label_tokens)

    def step(self, batches: list[Batch]) -> None:
        """One optimizer step."""
        self.stepper.update(self.backward(batches))


def gradients(vlm: nn.Module) -> Gradients:
    """Whole gradients by name; clears them. Every process calls it."""
    found = {name: p.grad for name, p in trained(vlm).items() if p.grad is not None}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}
    vlm.zero_grad()
    return {name: gradient.clone() for name, gradient in whole.items()}


def difference(ours: Gradients, peer: Gradients) -> float:
    """The largest difference, as a share of the largest number of its weight's gradient."""
    assert ours.keys() == peer.keys()
    return max(float((ours[n] - g).abs().max() / g.abs().max().clamp(min=1e-12)) for n, g in peer.items())


class BytesSent(TorchDispatchMode):
    """Bytes that this process hands to collectives (of a ring of n, each travels (n - 1) times in all)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the collectives among the operations."""
        name = func._schema.name
        if name.startswith("c10d::"):
            # (output, input, ...) of those over one tensor, lists of tensors otherwise.
            given = args[1] if name in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_") else args[0]
            tensors = given if isinstance(given, list) else [given]
            self.total += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def work(options: dict[str, Any]) -> None:
    """One of the two processes: gradients of the first step, then timed steps; rank 0 writes what it found."""
    world = dist.start("cpu")
    vlm = prepared(options["config"])
    steps = read_steps(vlm, Path(options["folder"]), world)
    ours = ShardedSteps(vlm, world)
    ours.backward(steps[0])
    found = gradients(vlm)
    if world.rank == 0:
        torch.save(found, options["gradients"])
    ours.step(steps[0])
    with BytesSent() as sent:
        ours.step(steps[0])
    dist.barrier()
    busy, wall = [], []
    for batches in steps * options["rounds"]:
        began = time.process_time(), time.perf_counter()
        ours.step(batches)
        busy.append(time.process_time() - began[0])
        wall.append(time.perf_counter() - began[1])
    ranks = dist.gather_objects({"cpu": sum(busy), "wall": sum(wall)})
    if world.rank == 0:
        result = {"ranks": ranks, "sent": sent.total, "steps": len(busy)}
        Path(options["out"]).write_text(json.dumps(result), encoding="utf-8")
    holder = ours
    del vlm, ours
    dist.stop(holder)


def planned_imbalance(packing: bool, examples: int = 1 << 15, seed: int = 7) -> tuple[float, float]:
    """Of two processes over an epoch of mixed 1/4/8/16 frames: (mean, largest) difference of a step, over its mean."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 4, 8, 16], examples) * 196 + rng.integers(40, 160, examples)
    order = EpochOrder(examples, seed, 0, 64, True)
    shares = []
    for step in range(len(order)):
        taken = lengths[order.step(step)[0]]
        groups = plan.balanced(taken, 16) if packing else plan.alike(taken, 16)
        cost = [
            sum(int(taken[g].sum() if packing else taken[g].max() * len(g)) for g in plan.share_of(groups, rank, 2))
            for rank in (0, 1)
        ]
        shares.append(abs(cost[0] - cost[1]) / (sum(cost) / 2))
    return float(np.mean(shares)), float(np.max(shares))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="A", choices=list(WORKLOADS), help="workload.py has their sizes")
    parser.add_argument("--nproc", action=Several, read=int, choices=[1, 2], default=[1, 2], help="processes")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each; the best counts")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.worker:
        work(json.loads(args.worker))
        return
    with tempfile.TemporaryDirectory() as name:
        measure(args.config, args.repeats, args.nproc, Path(name))


def measure(config: str, repeats: int, processes: Sequence[int], folder: Path) -> None:
    """One process beside the plain module, and two processes, as asked for."""
    write_clips(folder / "clips", FRAMES)
    world = dist.start("cpu")
    vlm = prepared(config)
    steps = read_steps(vlm, folder / "clips", world)
    plain = PlainSteps(vlm)
    sharded = copy.deepcopy(vlm) if 1 in processes else None
    plain.backward(steps[0])
    expected = gradients(plain.vlm)
    plain.step(steps[0])  # Allocations and optimizer states of the first step
    if sharded is not None:
        in_one(config, plain, ShardedSteps(sharded, world), steps, expected, repeats)
    if 2 in processes:
        in_two(config, expected, repeats, folder)
    dist.stop()


def in_one(config: str, plain: PlainSteps, ours: ShardedSteps, steps: Steps, expected: Gradients, repeats: int) -> None:
    """What FSDP2 costs where there is nothing to share."""
    ours.backward(steps[0])
    apart = _gate(gradients(ours.vlm), expected)
    ours.step(steps[0])

    def epoch(kind: PlainSteps | ShardedSteps) -> None:
        for batches in steps:
            kind.step(batches)

    (_, peer), (_, own) = best_of(repeats, lambda: epoch(plain), lambda: epoch(ours))
    overhead = own.cpu / peer.cpu - 1
    report(
        "dist",
        f"config {config}: FSDP2 in one process {own.cpu / len(steps):.3f} CPU-s a step, plain module "
        f"{peer.cpu / len(steps):.3f}: {overhead:+.1%} (target 5 %); gradients equal to {apart:.1g}; "
        f"{own.busy:.0%} of the cores in use meanwhile",
        config=config,
        processes=1,
        overhead=overhead,
        ours_cpu=own.cpu / len(steps),
        plain_cpu=peer.cpu / len(steps),
        gradient_difference=apart,
        busy=own.busy,
    )
    vars(ours).clear()  # see dist.stop


def in_two(config: str, expected: Gradients, repeats: int, folder: Path) -> None:
    """How equal the shares of two processes are, and what they send."""
    pair = run_pair(config, repeats, folder)
    apart = _gate(torch.load(folder / "gradients.pt", weights_only=True), expected)
    cpu = [rank["cpu"] / pair["steps"] for rank in pair["ranks"]]
    imbalance = abs(cpu[0] - cpu[1]) / (sum(cpu) / 2)
    packed, padded = planned_imbalance(True), planned_imbalance(False)
    report(
        "dist",
        f"config {config}: two processes {cpu[0]:.3f} and {cpu[1]:.3f} CPU-s a step ({imbalance:.1%} apart), "
        f"{pair['sent'] / 2**20:.1f} MiB handed to collectives a step and process; positions of two processes over "
        f"mixed 1/4/8/16 frames: {packed[0]:.2%} apart on average when packed (at most {packed[1]:.2%}), "
        f"{padded[0]:.1%} when padded (target 3 %); gradients equal to {apart:.1g}",
        config=config,
        processes=2,
        two_process_cpu=cpu,
        imbalance_cpu=imbalance,
        imbalance_packed=packed[0],
        imbalance_packed_worst=packed[1],
        imbalance_padded=padded[0],
        mib_sent=pair["sent"] / 2**20,
        gradient_difference=apart,
    )


def _gate(found: Gradients, expected: Gradients) -> float:
    apart = difference(found, expected)
    if apart > TOLERANCE:
        raise SystemExit(f"the gradients differ by {apart:.2g}: no figures")
    return apart


def run_pair(config: str, rounds: int, folder: Path) -> dict[str, Any]:
    """What two processes found."""
    options = {"config": config, "rounds": rounds, "folder": str(folder / "clips"), "out": str(folder / "pair.json")}
    options["gradients"] = str(folder / "gradients.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--worker", json.dumps(options)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the two processes failed: {done.stderr[-2000:]}")
    return json.loads((folder / "pair.json").read_text())


if __name__ == "__main__":
    main()
