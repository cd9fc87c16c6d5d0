"""Training with cached features: CPU-seconds an example beside the plain reference path (benchmark 2).

Four ways to take the same optimizer steps over the same clips (PNG frames of 596x336): the reference path; ours without
a cache; ours while it fills one; ours with all features in it. Configurations A, B, C are those of workload.py. Nothing
is reported before cached features are bit for bit those computed now, and the losses agree with the reference's.

    python benchmarks/bench_features.py                         # all three, about two minutes on an idle core
    python benchmarks/bench_features.py --config A --repeats 3
    python benchmarks/bench_features.py --config A,C --aggregator stpool,pool2,mean

With --aggregator ours aggregates the frames, which is another model, against the reference with all tokens
(benchmark 3); the gate is then a plain implementation of that aggregator.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import workload
from common import Cost, Several, best_of, report
from reference import Reference, read_batch
from torch import nn

from prismatic.data.feature_cache import FeatureCache
from prismatic.data.feature_cache_reader import CachedReader
from prismatic.data.feature_cache_writer import FeatureWriter
from prismatic.train.features import recipe

TARGETS = {"A": 14.0, "B": 2.2, "C": 6.0}  # reference over ours with cached features, in CPU-seconds
TARGETS_AGGREGATED = {"A": 25.0, "C": 40.0}
BREAK_EVEN = 1.2  # epochs
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 1e-4, 0.1, 1.0  # of both
LOSS_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-3, "float16": 2e-3}  # relative


class Ours:
    """Our steps over one dataset, in the order of its file. cache: a folder for features; None: none are kept."""

    def __init__(
        self, load: workload.Workload, annotations: Path, cache: Path | None, dtype: str, aggregator: str
    ) -> None:
        name, options = workload.AGGREGATORS[aggregator]
        self.vlm = workload.build_model(load, name, **options)
        self.vlm.train()
        dataset = workload.build_dataset(self.vlm, annotations)
        if cache is not None:
            tower, found = self.vlm.vision_backbone, FeatureCache(cache, dtype)
            found.bind(recipe(tower, load.vision, tower.image_spec, dataset.read.resize_strategy))
            self.vlm.feature_keeper = FeatureWriter(found)
            dataset = replace(dataset, features=CachedReader(dataset.read, found))
        self.cache = cache
        self.loader = workload.build_loader(dataset, load.batch)
        self.trained = [p for p in self.vlm.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)

    def epoch(self) -> list[float]:
        """The losses of its steps."""
        losses = []
        for batches in self.loader.iterate(0):
            tokens = sum(batch.num_label_tokens for batch in batches)
            loss = 0.0
            for batch in batches:
                part = self.vlm(batch).loss_sum / tokens
                part.backward()
                loss += float(part.detach())
            nn.utils.clip_grad_norm_(self.trained, MAX_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss)
        keeper = self.vlm.feature_keeper
        if isinstance(keeper, FeatureWriter):
            keeper.flush()
        return losses

    def filling_epoch(self) -> list[float]:
        """The same with nothing in the cache yet."""
        assert self.cache is not None
        for folder in ("entries", "notes"):
            shutil.rmtree(self.cache / folder, ignore_errors=True)
        return self.epoch()


class Plain:
    """The reference path over the same rows."""

    def __init__(self, load: workload.Workload, annotations: Path, aggregator: str = "concat") -> None:
        name, options = workload.AGGREGATORS[aggregator]
        self.reference = Reference(
            workload.build_model(load, name, **options),
            aggregate=aggregator,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_NORM,
        )
        self.dataset = workload.build_dataset(self.reference.vlm, annotations)
        self.records, self.batch = workload.records_of(self.dataset), load.batch

    def epoch(self) -> list[float]:
        """The losses of its steps."""
        starts = range(0, len(self.records), self.batch)
        rows = [self.records[start : start + self.batch] for start in starts]
        return [self.reference.step(read_batch(self.dataset, some)) for some in rows]


def check(live: Ours, cached: Ours, plain: Plain, dtype: str) -> None:
    """The gate: takes an epoch of each, the cached one twice. Raises SystemExit when they do not agree."""
    theirs = [plain.epoch(), plain.epoch()]
    ours = [live.epoch(), live.epoch()]
    kept = [cached.filling_epoch(), cached.epoch()]
    with torch.no_grad():
        for batches in zip(live.loader.iterate(0), cached.loader.iterate(0), strict=True):
            for fresh, known in zip(*batches, strict=True):
                features = live.vlm.vision_backbone(fresh.frames).to(known.cache.features.dtype)
                if not torch.equal(features, known.cache.features):
                    raise SystemExit("the gate is shut: cached features are not those computed now, bit for bit")
    if dtype == "float32" and kept != ours:
        raise SystemExit(f"the gate is shut: losses {kept} with a cache, {ours} without")
    for name, losses in (("live", ours), ("cached", kept)):
        got, expected = torch.tensor(losses).flatten(), torch.tensor(theirs).flatten()
        worst = float(((got - expected) / expected).abs().max())
        if worst > LOSS_TOLERANCE[dtype]:
            raise SystemExit(f"the gate is shut: {name} losses are {worst:.1e} from the reference's")


def run(config: str, aggregator: str, args: argparse.Namespace, folder: Path) -> None:
    """Measure and report one configuration."""
    dtype = args.dtype
    load = workload.WORKLOADS[config]
    steps = max(1, args.examples // load.batch)
    annotations = workload.write_clips(folder / "clips", [load.num_frames] * (steps * load.batch))
    live, cached, filling = (
        Ours(load, annotations, folder / name if name else None, dtype, aggregator) for name in ("", "cache", "filling")
    )
    check(live, cached, Plain(load, annotations, aggregator), dtype)
    plain = Plain(load, annotations)
    results = best_of(args.repeats, plain.epoch, live.epoch, filling.filling_epoch, cached.epoch)
    costs: list[Cost] = [cost for _, cost in results]
    theirs, ours, fill, known = (cost.cpu / (steps * load.batch) for cost in costs)
    break_even = 1 + max(0.0, fill - ours) / max(1e-9, ours - known)
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.feat")) / (steps * load.batch)
    target = (TARGETS if aggregator == "concat" else TARGETS_AGGREGATED).get(config)
    reached = target is None or (theirs / known >= target and break_even <= BREAK_EVEN)
    report(
        "features",
        f"{config}, {aggregator}: reference {theirs:.3f}, live {ours:.3f} ({theirs / ours:.2f}x), cached {known:.3f} "
        f"CPU-s an example = {theirs / known:.1f}x (target {target or '-'}x); filling {fill:.3f} = break-even after "
        f"{break_even:.2f} epochs (target {BREAK_EVEN}); {size / 1e6:.2f} MB a clip ({dtype}); "
        f"cores busy {costs[3].busy:.0%}",
        config=config,
        aggregator=aggregator,
        dtype=dtype,
        examples=steps * load.batch,
        reference_cpu_s=theirs,
        live_cpu_s=ours,
        fill_cpu_s=fill,
        cached_cpu_s=known,
        ratio_live=theirs / ours,
        ratio=theirs / known,
        ratio_wall=costs[0].wall / costs[3].wall,
        target=target,
        break_even=break_even,
        bytes_per_clip=size,
        busy=costs[3].busy,
        reached=reached,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse (the command line by default) and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action=Several, default=["A", "B", "C"], choices=list(workload.WORKLOADS))
    parser.add_argument("--aggregator", action=Several, default=["concat"], choices=list(workload.AGGREGATORS))
    parser.add_argument("--examples", type=int, default=4, help="examples of an epoch")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each path; the cheapest counts")
    parser.add_argument("--dtype", default="float32", choices=LOSS_TOLERANCE, help="precision of the cache")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    for config in args.config:
        with tempfile.TemporaryDirectory() as folder:
            for aggregator in args.aggregator:
                run(config, aggregator, args, Path(folder, aggregator))


if __name__ == "__main__":
    main()
