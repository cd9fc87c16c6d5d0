"""A training step: ours beside the plain reference step, the same model, data and optimizer, in CPU-seconds.

    python benchmarks/bench_train.py --config A,B,C
    python benchmarks/bench_train.py --config A,C --aggregator stpool,pool2,mean
    python benchmarks/bench_train.py --config A,B,C --feature-cache                     # bench_features.py

Both sides read PNG frames, compute, and update the weights, step by step in turn. The gate: the losses of all steps
agree to 1e-5, and after them the weights have moved the same way. With --aggregator ours aggregates the frames, which
is another model, against the reference with all tokens; the gate is then a plain implementation of that aggregator.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import Cost, Several, measured, report
from reference import Reference, read_batch
from workload import (
    AGGREGATORS,
    WORKLOADS,
    Workload,
    build_dataset,
    build_loader,
    build_model,
    records_of,
    trained,
    write_clips,
)

from prismatic import dist
from prismatic.conf.models import ModelConfig
from prismatic.models.llm.attention import use_attention
from prismatic.models.vlm import PrismaticVLM
from prismatic.train import fsdp
from prismatic.train.optim import build_optimizer
from prismatic.train.signals import StopSignals
from prismatic.train.step import Stepper
from prismatic.types import Batch

LEARNING_RATE = 1e-4
LOSS_GATE, WEIGHT_GATE = 1e-5, 1e-3


class Ours:
    """Our own step on `vlm` (changed in place): sharded over this one process, as training does it."""

    def __init__(
        self,
        vlm: PrismaticVLM,
        world: dist.World,
        recompute: str = "none",
        compiled: bool = False,
        optimizer: str = "adamw",
    ) -> None:
        stage = ModelConfig(finetune_learning_rate=LEARNING_RATE, finetune_optimizer=optimizer).stage("finetune")
        half = world.device.type == "cuda"
        use_attention(vlm.llm_backbone, "auto", world.device, half)
        options = {"mixed_precision": half, "reduce_fp32": False}
        fsdp.shard(vlm, world, stage.train_strategy, recompute=recompute, compile_blocks=compiled, **options)
        self.vlm = vlm
        vlm.train()
        vlm.vision_backbone.eval()
        self.stepper = Stepper(vlm, build_optimizer(vlm, stage), stage, world, StopSignals())

    def step(self, batches: list[Batch]) -> float:
        """One optimizer step. Returns the loss."""
        gradients = self.stepper.backward(batches, self.stepper.count(batches).label_tokens)
        self.stepper.update(gradients)
        return gradients.loss


@dataclass
class Side:
    """What one side did: the loss and the cost of each step."""

    losses: list[float] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    @property
    def best(self) -> Cost:
        """The step with the fewest CPU-seconds; the first one warms up."""
        return min(self.costs[1:] or self.costs, key=lambda cost: cost.cpu)


def weights(vlm: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trained weights, by their plain names."""
    whole = {n.replace("_checkpoint_wrapped_module.", ""): p.detach() for n, p in trained(vlm).items()}
    return {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).clone() for n, p in whole.items()}


def drift(start: dict[str, torch.Tensor], a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """How far weights a and b are from each other, as a share of how far b moved from the start."""
    apart = sum(float((a[n] - b[n]).square().sum()) for n in start)
    moved = sum(float((b[n] - start[n]).square().sum()) for n in start)
    return (apart / moved) ** 0.5


def race(workload: Workload, aggregator: str, folder: Path, args: argparse.Namespace) -> tuple[Side, Side, float]:
    """Steps of ours and of the reference in turn; both sides, and the drift of their weights."""
    plain = build_model(workload)
    name, options = AGGREGATORS[aggregator]
    model = build_model(workload, name, **options)
    data = build_dataset(plain, write_clips(folder, [workload.num_frames] * workload.batch * args.steps))
    start, records = weights(model), records_of(data)
    peer = Reference(plain, learning_rate=LEARNING_RATE)
    same = peer if name == "concat" else Reference(copy.deepcopy(model), aggregate=aggregator)
    ours = Ours(model, args.world, args.recompute, args.compile)
    batches = build_loader(build_dataset(model, folder / "clips.json"), workload.batch).iterate(0)
    left, right = Side(), Side()
    for step in range(args.steps):
        rows = records[step * workload.batch : (step + 1) * workload.batch]
        with measured() as cost:
            loss = peer.step(read_batch(data, rows))
        right.costs.append(cost)
        right.losses.append(loss if same is peer else same.step(read_batch(data, rows)))
        with measured() as cost:
            left.losses.append(ours.step(next(batches)))
        left.costs.append(cost)
    return left, right, drift(start, weights(ours.vlm), weights(same.vlm))


def run(config: str, aggregator: str, args: argparse.Namespace) -> None:
    workload = WORKLOADS[config]
    with tempfile.TemporaryDirectory() as folder:
        ours, peer, apart = race(workload, aggregator, Path(folder), args)
    worst = max(abs(a - b) / b for a, b in zip(ours.losses, peer.losses, strict=True))
    equal = worst <= LOSS_GATE and apart <= WEIGHT_GATE
    a, b = ours.best, peer.best
    ratio = b.cpu / a.cpu if equal else None
    other = aggregator != "concat"
    what = f"{config}, {aggregator}" if other else config
    said = f"{ratio:.2f}x less" if ratio else f"NOT EQUAL (losses {worst:.1e}, weights {apart:.1e}): no ratio"
    against = "the reference with all visual tokens (another model)" if other else "the reference"
    report(
        "train",
        f"train {what}: {a.cpu / workload.batch:.2f} CPU-s an example, {against} {b.cpu / workload.batch:.2f}: {said}",
        config=config,
        aggregator=aggregator,
        ratio=ratio,
        cpu_per_example=a.cpu / workload.batch,
        peer_cpu_per_example=b.cpu / workload.batch,
        wall_ratio=min(c.wall for c in peer.costs) / min(c.wall for c in ours.costs),
        loss_difference=f"{worst:.1e}",
        weight_drift=f"{apart:.1e}",
        steps=args.steps,
        recompute=args.recompute,
        compiled=args.compile,
        threads=torch.get_num_threads(),
        busy=max(a.busy, b.busy),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action=Several, default=["A", "B", "C"], choices=list(WORKLOADS))
    parser.add_argument("--aggregator", action=Several, default=["concat"], choices=list(AGGREGATORS))
    parser.add_argument("--feature-cache", action="store_true", help="ours with and without cached features instead")
    parser.add_argument(
        "--peer", default="upstream", choices=["upstream"], help="the plain step of reference.py: the one there is"
    )
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of each side; the best one counts")
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "full"], help="ours")
    parser.add_argument("--compile", action="store_true", help="ours: torch.compile per block (more --steps then)")
    args = parser.parse_args()
    if args.feature_cache:
        import bench_features

        bench_features.main(["--config", *args.config, "--aggregator", *args.aggregator])
        return
    args.world = dist.start("cpu")
    for config in args.config:
        for aggregator in args.aggregator:
            run(config, aggregator, args)
    dist.stop()


if __name__ == "__main__":
    main()
