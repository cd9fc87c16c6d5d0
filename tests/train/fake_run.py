"""A model and a loader of a few hundred numbers with the real interfaces, and a script that trains them.

`python fake_run.py '{"out": "result.json", ...}'` is what the tests start, alone or under torchrun; see `main`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prismatic import dist
from prismatic.conf.data import DatasetConfig
from prismatic.conf.models import ModelConfig
from prismatic.conf.run import PretrainConfig
from prismatic.train import files, weights, writer
from prismatic.train.optim import freeze_matching
from prismatic.train.signals import EXIT_CODES
from prismatic.train.trainer import Trainer
from prismatic.types import IGNORE_INDEX, Batch, Skip

VOCAB, WIDTH, PIXELS = 32, 16, 12


@dataclass
class LossOutput:
    loss_sum: torch.Tensor
    num_tokens: torch.Tensor


class FakeLLM(nn.Module):
    """Embedding, two layers with dropout, and a head tied to the embedding."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.embed.weight


class FakeVLM(nn.Module):
    """Predicts the next token from the present one and the mean of all frames; no position sees another."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vision_backbone = nn.Sequential(nn.Linear(PIXELS, WIDTH), nn.BatchNorm1d(WIDTH))
        self.aggregator = nn.Identity()
        self.projector = nn.Linear(WIDTH, WIDTH)
        self.llm_backbone = FakeLLM(dropout)
        self.poison: str | None = None
        self.whole_vision = False

    def freeze(self, stage: str) -> None:
        trained = {"align": ["projector"], "finetune": ["projector", "llm_backbone"]}
        self._trained = trained.get(stage, ["vision_backbone", "projector", "llm_backbone"])
        for name, module in self.named_children():
            module.requires_grad_(name in self._trained)

    def trainable_modules(self) -> list[str]:
        return self._trained

    def fsdp_units(self) -> list[nn.Module]:
        return [self.vision_backbone, *self.llm_backbone.layers]

    def forward(self, batch: Batch) -> LossOutput:
        llm = self.llm_backbone
        pixels = (batch.frames.flatten(1).float() / 255).to(self.projector.weight.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "vision_backbone" in self._trained):
            features = self.vision_backbone(pixels)
        seen = self.projector(features).mean(0)
        hidden = llm.embed(batch.input_ids) + seen
        for layer in llm.layers:
            hidden = layer(hidden)
        logits = llm.lm_head(llm.norm(hidden))[:, :-1].flatten(0, 1)
        labels = batch.labels[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
        if self.poison is not None and self.poison in batch.ids:
            loss = loss * float("nan")
        return LossOutput(loss, (labels != IGNORE_INDEX).sum())


class FakeLoader:
    """`count` examples with 1 to 9 label tokens each, in an order that depends on (seed, epoch) alone."""

    def __init__(self, count: int, world: dist.World, *, per_step: int, per_device: int, shuffle: bool = True) -> None:
        self.count, self.world, self.per_step, self.per_device = count, world, per_step, per_device
        self.shuffle = shuffle
        self.events: dict[int, list[int]] = {}  # step of the run -> signals that this process gets before it
        self.broken: set[int] = set()
        self.unlabelled = False
        self.unreadable: int | None = None  # Row that raises
        self.given: list[list[str]] = []  # Ids of the counted examples of each step, of this process

    def num_examples(self, epoch: int) -> int:
        return self.count

    def steps_per_epoch(self, epoch: int) -> int:
        return -(-self.count // self.per_step)

    def largest(self) -> Batch:
        return self._batch([(index, True) for index in range(self.per_device)])

    def iterate(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(epoch))
        for step in range(start_step, self.steps_per_epoch(epoch)):
            places = range(step * self.per_step, (step + 1) * self.per_step)
            own = [p for n, p in enumerate(places) if n // self.per_device % self.world.world_size == self.world.rank]
            chunks = [own[i : i + self.per_device] for i in range(0, len(own), self.per_device)]
            picks = [[(int(order[p % self.count]), p < self.count) for p in chunk] for chunk in chunks]
            self.given.append([f"row-{index}" for chunk in picks for index, counted in chunk if counted])
            for number in self.events.get(epoch * self.steps_per_epoch(epoch) + step, ()):
                os.kill(os.getpid(), number)
            yield [self._batch(chunk) for chunk in picks]

    def _batch(self, picks: list[tuple[int, bool]]) -> Batch:
        ids, labels, frames = [], [], []
        for index, counted in picks:
            if index == self.unreadable:
                raise ValueError(f"rows.json, row {index}: cannot be read")
            random = torch.Generator().manual_seed(1000 + index)
            row = torch.randint(0, VOCAB, (10,), generator=random)
            label = row.clone()
            learned = 1 + index % 9 if counted and not self.unlabelled else 0
            label[: 10 - learned] = IGNORE_INDEX
            ids.append(row)
            labels.append(label)
            # The same frame for all: the fake model mixes the frames of a batch, whose make-up depends on the world.
            frames.append(torch.full((1, 3, 2, 2), 100, dtype=torch.uint8))
        return Batch(
            input_ids=torch.stack(ids),
            labels=torch.stack(labels),
            position_ids=torch.arange(10).expand(len(ids), 10),
            frames=torch.cat(frames),
            frames_per_medium=(1,) * len(ids),
            packed=False,
            ids=tuple(f"row-{index}" for index, _ in picks),
            useful=10 * len(ids),
            skipped=tuple(
                Skip(f"row-{index}", f"rows.json, row {index}", "it is empty", 0, index)
                for index, counted in picks
                if counted and index in self.broken
            ),
        )


def make_config(root: Path, **values: object) -> PretrainConfig:
    """A small run in `root`; values: fields of PretrainConfig, and of its model with the prefix `model_`."""
    model = ModelConfig.get_choice_class("tiny-video")()
    defaults = {
        "model_finetune_global_batch_size": 8,
        "model_finetune_per_device_batch_size": 2,
        "model_finetune_epochs": 2,
        "model_finetune_learning_rate": 1e-2,
        "stage": "finetune",
        "run_id": "run",
        "run_root_dir": root,
        "trackers": ("jsonl",),
    }
    cfg = PretrainConfig(model=model, dataset=DatasetConfig.get_choice_class("moving-shapes")())
    for name, value in {**defaults, **values}.items():
        target, field = (cfg.model, name.removeprefix("model_")) if name.startswith("model_") else (cfg, name)
        assert hasattr(target, field), field
        setattr(target, field, value)
    return cfg


def make_trainer(cfg: PretrainConfig, world: dist.World, *, count: int = 30, dropout: float = 0.0, **kw) -> Trainer:
    """A trainer of the fake model on `count` examples, validated on 5."""
    run_dir = cfg.run_root_dir / cfg.resolved_run_id()
    run_dir.mkdir(parents=True, exist_ok=True)
    vlm = FakeVLM(dropout, seed=kw.pop("model_seed", 0))
    vlm.to(kw.pop("dtype", torch.float32))
    vlm.freeze(cfg.stage)
    freeze_matching(vlm, cfg.model.freeze)
    stage = cfg.model.stage(cfg.stage)
    sizes = {"per_step": stage.global_batch_size, "per_device": stage.per_device_batch_size}
    return Trainer(
        cfg,
        vlm,
        FakeLoader(count, world, **sizes),
        FakeLoader(5, world, **sizes, shuffle=False),
        world,
        run_dir,
        **kw,
    )


def main(options: dict) -> int:
    """Train; leave {"stop", "error", "step", "losses", "ids"} in `out` and the final weights beside it.

    Options: root, out, config (of `make_config`), trainer (of `make_trainer`), environment, signals {step: [numbers]}
    for process `rank_to_signal` (in the first life that torchrun gives it), unreadable (a row that raises), poison (the
    id of a row whose loss is NaN), spike_at (a step whose loss is high). What kills this process: die_in (a function of
    prismatic.train.files) at its `die_at`-th call, die_at_byte of what checkpoints write, die_after seconds of
    training.
    """
    os.environ.update(options.get("environment", {}))
    torch.set_num_threads(1)
    world = dist.start("cpu")
    dist.setup_logging(world)
    cfg = make_config(Path(options["root"]), **options.get("config", {}))
    trainer = make_trainer(cfg, world, **options.get("trainer", {}))
    if world.rank == options.get("rank_to_signal", 0) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        trainer.train_loader.events = {int(k): v for k, v in options.get("signals", {}).items()}
    trainer.train_loader.unreadable = options.get("unreadable")
    trainer.vlm.poison = options.get("poison")
    if "spike_at" in options:
        _spike(trainer, options["spike_at"])
    if "die_in" in options:
        _die_in(options["die_in"], options.get("die_at", 1))
    if "die_at_byte" in options:
        _die_at_byte(options["die_at_byte"])
    if "die_after" in options:
        timer = threading.Timer(options["die_after"], os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True  # A run that ends earlier does not wait for its death
        timer.start()
    stop, error = None, None
    try:
        stop = trainer.fit()
    except (ValueError, OSError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    if error is None:
        state = weights.gather(trainer.vlm, trainer.trained_modules)
        losses = trainer.losses
        if world.rank == 0:
            files.write_tensors(Path(options["out"] + ".safetensors"), state)
    result = {"stop": stop.name if stop is not None else None, "error": error, "step": trainer.at.step}
    result["losses"] = losses if error is None else []
    if error is None:
        by_rank = dist.gather_objects(trainer.train_loader.given)
        result["ids"] = [sorted(i for own in step for i in own) for step in zip(*by_rank, strict=True)]
    if world.rank == 0:
        Path(options["out"]).write_text(json.dumps(result))
    holders = [trainer]
    del trainer
    dist.stop(*holders, failed=error is not None)
    return 2 if error is not None else EXIT_CODES[stop] if stop is not None else 0


def _spike(trainer: Trainer, step: int) -> None:
    """The loss of one step is sixty times as high."""
    forward = trainer.vlm.forward

    def spiking(batch: Batch) -> LossOutput:
        out = forward(batch)
        out.loss_sum = out.loss_sum * (60 if trainer.at.step == step - 1 else 1)
        return out

    trainer.vlm.forward = spiking


def _die_in(name: str, at: int) -> None:
    original, calls = getattr(files, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            if name == "write_tensors":  # Half of the file is there when the process dies
                Path(args[0]).write_bytes(b"\0" * 100)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(files, name, dying)


def _die_at_byte(at: int) -> None:
    """Be killed when so many bytes of sharded checkpoints have been written, in the middle of a write."""
    original, written = writer._SummedFile.write, []

    def dying(self, data):
        room = at - sum(written)
        if len(memoryview(data).cast("B")) > room:
            os.write(self.fileno(), memoryview(data).cast("B")[: max(0, room)])
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(original(self, data))
        return written[-1]

    writer._SummedFile.write = dying


if __name__ == "__main__":
    sys.exit(main(globals().get("OPTIONS") or json.loads(sys.argv[1])))
