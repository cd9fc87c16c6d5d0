"""Benchmark 10: how long a step stands still for a checkpoint, how long until it is on the disk, and until it is back.

Ours (`prismatic.train.saver`, everything that a run saves: shards, checksums, consolidated weights, links) beside
`torch.save` of the same tensors, `dcp.save` and `dcp.async_save`, each followed by fsync where it does none itself.
The gate: what each of them gives back is what was saved, bit for bit.

    python benchmarks/bench_checkpoint.py --mb 273,2000 --repeats 3
    python benchmarks/bench_checkpoint.py --device cuda --mb 50000 --width 4096 --repeats 2
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import common
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from prismatic import dist
from prismatic.conf.run import PretrainConfig
from prismatic.dist import World
from prismatic.train import checkpoint, files, folder, fsdp, staging
from prismatic.train.saver import Saver

VOCAB = 8000
STATE = {"step": 1, "epoch": 0}


class Model(nn.Module):
    """Layers like those of an LLM: a dozen tensors each, of very different sizes."""

    def __init__(self, layers: int, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vision_backbone, self.whole_vision = None, False
        self.llm_backbone = nn.Module()
        self.llm_backbone.embed = nn.Embedding(VOCAB, width)
        self.llm_backbone.layers = nn.ModuleList(
            nn.Sequential(
                *[nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.LayerNorm(width)],
                *[nn.Linear(width, width) for _ in range(4)],
            )
            for _ in range(layers)
        )

    def fsdp_units(self) -> list[nn.Module]:
        return list(self.llm_backbone.layers)


@dataclass
class Times:
    """What one of them took, save by save.

    blocked: milliseconds that the loop stood still, also for a copy that the next update had to wait for. cpu: the
    loop's CPU-milliseconds meanwhile, which other work on the machine does not stretch. durable: seconds until the disk
    had everything. resume: seconds to read it back.
    """

    blocked: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    resume: list[float] = field(default_factory=list)


class Subject:
    """A sharded model with an optimizer that has stepped, and the ways to save and load both."""

    def __init__(self, world: World, root: Path, megabytes: float, width: int = 512, seed: int = 0) -> None:
        per_layer = 12 * width * width + 13 * width
        layers = max(1, round((megabytes * 1e6 / 12 - VOCAB * width) / per_layer))
        self.root, self.device = root, world.device
        with world.device:
            self.vlm = Model(layers, width, seed)
        fsdp.shard(
            self.vlm,  # type: ignore[arg-type]
            world,
            "fsdp-full-shard",
            mixed_precision=False,
            reduce_fp32=False,
            recompute="none",
        )
        self.optimizer = torch.optim.AdamW(self.vlm.parameters(), lr=1e-3, fused=True)
        cfg = PretrainConfig(keep_checkpoints=1)
        self.saver = Saver(cfg, root / "ours", self.vlm, self.optimizer, ["llm_backbone"], world)
        self.step()
        self.saver.after_step()

    def step(self) -> None:
        """Change every weight and every moment."""
        for number, parameter in enumerate(self.vlm.parameters()):
            parameter.grad = torch.full_like(parameter, 1e-3 * (number % 7 - 3))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self) -> staging.Tree:
        """What all of them save."""
        return checkpoint.contents(self.vlm, self.optimizer)

    def plain(self) -> staging.Tree:
        """The same without the layer that shards: what a script without FSDP would hand to torch.save."""
        return _each(self.tensors(), staging.local)


def _each(tree: staging.Tree, action: Callable[[torch.Tensor], torch.Tensor]) -> staging.Tree:
    return {k: _each(v, action) if isinstance(v, dict) else action(v) for k, v in tree.items()}


def _same(one: staging.Tree, two: staging.Tree) -> bool:
    ours, theirs = dict(staging.leaves(one)), dict(staging.leaves(two))
    return ours.keys() == theirs.keys() and all(
        torch.equal(staging.local(ours[path]), staging.local(theirs[path])) for path in ours
    )


@contextmanager
def _loop(times: Times) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.thread_time()
    yield
    times.blocked.append(1000 * (time.perf_counter() - wall))
    times.cpu.append(1000 * (time.thread_time() - cpu))


def _ours(subject: Subject, target: Subject, times: Times, number: int) -> staging.Tree:
    began = time.perf_counter()
    with _loop(times):
        subject.saver.save({**STATE, "step": number}, 1.0)
    compute(0.2, subject.device)  # The next forward and backward pass, beside which the copy is made
    wall, cpu = time.perf_counter(), time.thread_time()
    subject.saver.copied()  # What the next step of the optimizer does first
    times.blocked[-1] += 1000 * (time.perf_counter() - wall)
    times.cpu[-1] += 1000 * (time.thread_time() - cpu)
    subject.saver.finish_writing()
    times.durable.append(time.perf_counter() - began)
    began = time.perf_counter()
    found = folder.find("auto", subject.root / "ours")
    assert found is not None
    checkpoint.restore(found, target.vlm, target.optimizer)
    times.resume.append(time.perf_counter() - began)
    return target.tensors()


def _torch_save(subject: Subject, target: Subject, times: Times, number: int) -> staging.Tree:
    path = subject.root / "torch.pt"
    began = time.perf_counter()
    with _loop(times):
        torch.save(subject.plain(), path)
    files.sync(path)
    times.durable.append(time.perf_counter() - began)
    began = time.perf_counter()
    loaded = torch.load(path, weights_only=True)
    for (_, tensor), (_, value) in zip(staging.leaves(target.tensors()), staging.leaves(loaded), strict=True):
        staging.local(tensor).copy_(value)
    times.resume.append(time.perf_counter() - began)
    return target.tensors()


def _dcp(subject: Subject, target: Subject, times: Times, number: int, *, beside: bool) -> staging.Tree:
    path = subject.root / "dcp"
    shutil.rmtree(path, ignore_errors=True)
    tensors, writer = subject.tensors(), dcp.FileSystemWriter(path)
    began = time.perf_counter()
    if beside:
        with _loop(times):
            pending = dcp.async_save(tensors, storage_writer=writer)
        pending.result()  # type: ignore[union-attr]
    else:
        with _loop(times):
            dcp.save(tensors, storage_writer=writer)
    times.durable.append(time.perf_counter() - began)
    began = time.perf_counter()
    state = _each(target.tensors(), torch.Tensor.detach)
    dcp.load(state, checkpoint_id=path)
    times.resume.append(time.perf_counter() - began)
    return target.tensors()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mb",
        action=common.Several,
        read=float,
        default=[273.0],
        help="megabytes of full state (weights and AdamW's moments)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="saves by each; they take turns")
    parser.add_argument("--dir", type=Path, default=None, help="a folder on the disk to write to; default: temporary")
    parser.add_argument("--threads", type=int, default=1, help="threads of the copy")
    parser.add_argument("--width", type=int, default=512, help="of the layers; of 7B models 4096")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where the state is; twice, to compare"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("prismatic").setLevel(logging.ERROR)
    world = dist.start(args.device)
    for megabytes in args.mb:
        measure(world, megabytes, args)
    dist.stop()


def measure(world: World, megabytes: float, args: argparse.Namespace) -> None:
    """One size: every one of them in turn, and its lines."""
    runs = {
        "ours": _ours,
        "torch_save": _torch_save,
        "dcp_save": lambda *a: _dcp(*a, beside=False),
        "dcp_async": lambda *a: _dcp(*a, beside=True),
    }
    with tempfile.TemporaryDirectory(dir=args.dir) as root:
        subject = Subject(world, Path(root), megabytes, args.width)
        target = Subject(world, Path(root) / "target", megabytes, args.width, seed=1)
        size = staging.num_bytes(subject.tensors()) / 1e6
        copy = _copy_floor(subject)
        times = {name: Times() for name in runs}
        with common.measured() as cost:
            for number in range(args.repeats):
                for name, run in runs.items():
                    subject.step()
                    back = run(subject, target, times[name], 2 + number * len(runs))
                    assert _same(subject.tensors(), back), f"{name} gave back something else"
        beside = _beside(subject, 2 + args.repeats * len(runs))
        subject.saver.finish()
        _report(times, size, copy, beside, cost.busy)
        target.saver.finish()
        for holder in (subject, target):
            vars(holder).clear()  # see dist.stop


def compute(seconds: float, device: torch.device) -> None:
    """What a model does all day."""
    left, right = (torch.randn(256, 256, device=device) for _ in range(2))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        left @ right
        common.wait(device)


def _copy_floor(subject: Subject) -> float:
    """Milliseconds of copying the tensors into memory that is there: the least that any save can take."""
    tensors = [staging.local(tensor) for _, tensor in staging.leaves(subject.tensors())]
    buffers = [tensor.clone() for tensor in tensors]
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        common.wait(subject.device)
        best = min(best, time.perf_counter() - began)
    return 1000 * best


def _beside(subject: Subject, number: int) -> float:
    """How much longer a computing step takes while a checkpoint is being written: a ratio of medians."""
    left, right = (torch.randn(768, 768, device=subject.device) for _ in range(2))

    def step() -> float:
        began = time.perf_counter()
        for _ in range(20):
            left @ right
        common.wait(subject.device)
        return time.perf_counter() - began

    alone, during = [step() for _ in range(15)], []
    for attempt in range(3):
        subject.step()
        subject.saver.save({**STATE, "step": number + attempt}, 1.0)
        while subject.saver.writing:
            during.append(step())
        subject.saver.finish_writing()
        alone += [step() for _ in range(15)]
    return statistics.median(during) / statistics.median(alone)


def _report(times: dict[str, Times], size: float, copy: float, beside: float, busy: float) -> None:
    best = {n: (min(t.blocked), min(t.cpu), min(t.durable), min(t.resume)) for n, t in times.items()}
    ours = best["ours"]
    for name, (blocked, cpu, durable, resume) in best.items():
        print(
            f"{name:11} blocks {blocked:7.1f} ms ({cpu:6.1f} CPU-ms)  durable after {durable:5.2f} s  "
            f"back in {resume:5.2f} s{'' if name == 'ours' else f'  {blocked / ours[0]:5.1f}x ours'}"
        )
    peers = ", ".join(f"{n} {best[n][0] / ours[0]:.1f}x ({best[n][1] / ours[1]:.1f}x CPU)" for n in best if n != "ours")
    common.report(
        "checkpoint",
        f"{size:.0f} MB of full state: a step stands still for {ours[0]:.1f} ms ({ours[1]:.1f} CPU-ms; copying alone "
        f"{copy:.1f} ms; {peers}); a step beside the writing takes {beside:.2f}x",
        megabytes=size,
        copy_ms=copy,
        **{f"{name}_blocked_ms": value[0] for name, value in best.items()},
        **{f"{name}_blocked_cpu_ms": value[1] for name, value in best.items()},
        **{f"{name}_durable_s": value[2] for name, value in best.items()},
        **{f"{name}_resume_s": value[3] for name, value in best.items()},
        worst_blocked_ms=max(times["ours"].blocked),
        beside=beside,
        busy=busy,
    )


if __name__ == "__main__":
    main()
