"""What spreading over processes costs: FSDP2 in one process beside the plain module, and two gloo processes.

    python benchmarks/bench_dist.py                       # configuration A, a few minutes
    python benchmarks/bench_dist.py --config tiny --nproc 1,2

The gate: the gradients of a step are the same, to 1e-6 of the largest of each weight, from the plain module, from one
process and from two, over examples of unlike lengths (1, 2 and 4 frames). Imbalance is told twice: CPU-seconds of the
two processes beside the FLOPs planned for them, and what is planned over an epoch of mixed 1/4/8/16 frames.
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
from prismatic.train.flops import LLMCost, StepFlops, llm_cost
from prismatic.train.optim import build_optimizer
from prismatic.train.signals import StopSignals
from prismatic.train.step import Stepper
from prismatic.types import Batch

FRAMES = (1, 4, 2, 4, 1, 4, 4, 2)
GLOBAL, PER_DEVICE = 8, 2  # one step, whose work can be halved
LABELS = 40  # of an example
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
    steps, flops = read_steps(vlm, Path(options["folder"]), world), StepFlops(vlm)
    ours = ShardedSteps(vlm, world)
    ours.backward(steps[0])
    found = gradients(vlm)
    if world.rank == 0:
        torch.save(found, options["gradients"])
    ours.step(steps[0])
    with BytesSent() as sent:
        ours.step(steps[0])
    dist.barrier()
    busy = []
    for _ in range(options["rounds"]):
        began = time.process_time()
        for batches in steps:
            ours.step(batches)
        busy.append(time.process_time() - began)
    planned = sum(flops.step_flops(batches) for batches in steps)
    ranks = dist.gather_objects({"cpu": min(busy) / len(steps), "flops": planned / len(steps)})
    if world.rank == 0:
        result = {"ranks": ranks, "sent": sent.total}
        Path(options["out"]).write_text(json.dumps(result), encoding="utf-8")
    holder = ours
    del vlm, ours
    dist.stop(holder)


def apart(work: Sequence[float]) -> float:
    """Difference of the most and the least, over the mean."""
    return (max(work) - min(work)) / (sum(work) / len(work))


def planned_imbalance(cost: LLMCost, packing: bool, examples: int = 1 << 13, seed: int = 7) -> dict[str, float]:
    """Two processes over an epoch of mixed 1/4/8/16 frames: how far a step's positions and the LLM's FLOPs for them are
    apart, on average, and the largest of the FLOPs."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 4, 8, 16], examples) * 196 + rng.integers(40, 160, examples)
    order = EpochOrder(examples, seed, 0, 64, True)
    positions, flops = [], []
    for step in range(len(order)):
        taken = lengths[order.step(step)[0]]
        groups = plan.balanced(taken, 16) if packing else plan.alike(taken, 16)
        rows = [
            [taken[g] if packing else np.full(len(g), taken[g].max()) for g in plan.share_of(groups, rank, 2)]
            for rank in (0, 1)
        ]
        positions.append(apart([float(sum(map(np.sum, share))) for share in rows]))
        labels = [LABELS * sum(map(len, share)) for share in rows]
        work = [np.concatenate(share).tolist() for share in rows]
        flops.append(apart([cost.step_flops(*each) for each in zip(work, labels, strict=True)]))
    return {"positions": float(np.mean(positions)), "flops": float(np.mean(flops)), "worst": float(np.max(flops))}


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
        in_two(config, llm_cost(vlm.llm_backbone), expected, repeats, folder)
    dist.stop()


def in_one(config: str, plain: PlainSteps, ours: ShardedSteps, steps: Steps, expected: Gradients, repeats: int) -> None:
    """What FSDP2 costs where there is nothing to share."""
    ours.backward(steps[0])
    equal = _gate(gradients(ours.vlm), expected)
    ours.step(steps[0])

    def epoch(kind: PlainSteps | ShardedSteps) -> None:
        for batches in steps:
            kind.step(batches)

    (_, peer), (_, own) = best_of(repeats, lambda: epoch(plain), lambda: epoch(ours))
    overhead = own.cpu / peer.cpu - 1
    report(
        "dist",
        f"config {config}: FSDP2 in one process {own.cpu / len(steps):.3f} CPU-s a step, plain module "
        f"{peer.cpu / len(steps):.3f}: {overhead:+.1%} (target 5 %); gradients equal to {equal:.1g}; "
        f"{own.busy:.0%} of the cores in use meanwhile",
        config=config,
        processes=1,
        overhead=overhead,
        ours_cpu=own.cpu / len(steps),
        plain_cpu=peer.cpu / len(steps),
        gradient_difference=equal,
        busy=own.busy,
    )
    vars(ours).clear()  # see dist.stop


def in_two(config: str, cost: LLMCost, expected: Gradients, repeats: int, folder: Path) -> None:
    """How equal the shares of two processes are, and what they send."""
    pair = run_pair(config, repeats, folder)
    equal = _gate(torch.load(folder / "gradients.pt", weights_only=True), expected)
    cpu, flops = ([rank[name] for rank in pair["ranks"]] for name in ("cpu", "flops"))
    packed, padded = (planned_imbalance(cost, packing) for packing in (True, False))
    report(
        "dist",
        f"config {config}: two processes {cpu[0]:.3f} and {cpu[1]:.3f} CPU-s a step ({apart(cpu):.1%} apart; their "
        f"FLOPs {apart(flops):.1%}), {pair['sent'] / 2**20:.1f} MiB handed to collectives a step and process; over "
        f"mixed 1/4/8/16 frames, packed: positions {packed['positions']:.2%} apart on average, FLOPs "
        f"{packed['flops']:.2%} (at most {packed['worst']:.1%}), padded {padded['positions']:.1%} and "
        f"{padded['flops']:.1%} (target 3 %); gradients equal to {equal:.1g}",
        config=config,
        processes=2,
        two_process_cpu=cpu,
        two_process_flops=flops,
        imbalance_cpu=apart(cpu),
        imbalance_packed=packed,
        imbalance_padded=padded,
        mib_sent=pair["sent"] / 2**20,
        gradient_difference=equal,
    )


def _gate(found: Gradients, expected: Gradients) -> float:
    worst = difference(found, expected)
    if worst > TOLERANCE:
        raise SystemExit(f"the gradients differ by {worst:.2g}: no figures")
    return worst


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
