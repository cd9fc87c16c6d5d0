"""What a run says about itself: the lines at its beginning and end, and the texts of its errors."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import draccus
import torch

from prismatic.report.run_report import NAME as REPORT
from prismatic.train import folder
from prismatic.train.console import duration, short
from prismatic.train.limits import LOUD_WAITS, TELL_AFTER
from prismatic.train.metrics import Metrics
from prismatic.train.validation import Measured, losses_by_part
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.train.trainer import Trainer

log = logging.getLogger(__name__)

SHOWN_IDS = 8


def header(trainer: Trainer, resumed_from: Path | None) -> None:
    """Sizes and settings, before the first step."""
    stage, world, loader = trainer.stage, trainer.world, trainer.train_loader
    # An epoch of longer woven examples has fewer steps.
    counts = sorted({loader.steps_per_epoch(epoch) for epoch in range(stage.epochs)})
    per_epoch = f"{counts[0]} an epoch" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} an epoch"
    accumulated = stage.global_batch_size // (stage.per_device_batch_size * world.world_size)
    trained = {name: _size(getattr(trainer.vlm, name)) for name in trainer.trained_modules}
    total = sum(p.numel() for p in trainer.vlm.parameters())
    bf16 = world.device.type == "cuda" and trainer.cfg.model.enable_mixed_precision_training
    held_out = [sum(s.loader.num_examples(g) for g in range(len(s.clips))) for s in trainer.val_sets.values()]
    val = f", {' + '.join(f'{count:,}' for count in held_out)} for validation" if held_out else ""
    times = f" x {accumulated} accumulated" if accumulated > 1 else ""
    processes = "1 process" if world.world_size == 1 else f"{world.world_size} processes"
    precision = "bf16 over fp32 weights" if bf16 else "fp32"
    lines = [
        f"Run       {trainer.run_dir}  (stage {stage.stage}, seed {trainer.cfg.seed})",
        f"Data      {loader_size(loader)} examples{val}",
        f"Model     trains {', '.join(f'{n} {short(s)}' for n, s in trained.items())} of {short(total)} parameters",
        f"Batch     {stage.global_batch_size} examples a step = {processes} x {stage.per_device_batch_size}{times}",
        f"Steps     {trainer.total_steps} ({per_epoch}), learning rate {stage.learning_rate:g}, "
        f"{stage.lr_scheduler_type}",
        f"Device    {_device_name(world.device)}, {precision}, {stage.train_strategy}",
    ]
    if resumed_from is not None:
        lines.append(f"Resuming  from {resumed_from}: {trainer.at.step} of {trainer.total_steps} steps are done")
    for line in lines:
        log.info(line)


def nothing_to_do(trainer: Trainer) -> None:
    """For a run that is complete already."""
    log.info(f"This run is complete. To train anew, pass another --run_id, or --resume never. {_weights(trainer)}")


def summary(trainer: Trainer, stop: Signals | None, steps: int, seconds: float) -> None:
    """How it went and where the weights are."""
    if stop is not None:
        at = f"step {trainer.at.step} of {trainer.total_steps}"
        log.info(f"Stopped by {stop.name} after {at}, and saved; the same command goes on from here")
    else:
        validation = trainer.validation_loss
        parts = [f"{steps} steps in {duration(seconds)}", f"loss {trainer.mean_loss:.4f}"]
        parts += [f"validation loss {validation:.4f}"] if validation is not None else []
        parts += [f"{trainer.skips.skipped} samples skipped"] if trainer.skips.skipped else []
        parts += [f"{trainer.guard.left_out} steps left out"] if trainer.guard.left_out else []
        console = trainer.metrics.console if trainer.metrics is not None else None
        parts += [f"MFU {console.mfu:.0%}"] if console is not None and console.mfu is not None else []
        if trainer.world.device.type == "cuda":
            parts.append(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        log.info(f"Done: {', '.join(parts)}")
    if trainer.waits.steps > 4 * TELL_AFTER:  # it may have changed since it was told
        limit(trainer)
    log.info(_weights(trainer))
    if (trainer.run_dir / REPORT).is_file():
        log.info(f"Report: {trainer.run_dir / REPORT}")
    if stop is None:
        log.info(f"Ask it:  python scripts/generate.py --model_path {trainer.run_dir} --media VIDEO --prompt QUESTION")
    if trainer.metrics is not None and trainer.metrics.unwritten:
        log.warning(f"{trainer.metrics.unwritten} rows of metrics could not be written: the disk is full")


def limit(trainer: Trainer) -> None:
    """Which side the run waits for, reading or computing, and what helps."""
    data, cores = trainer.cfg.dataset, os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))  # a container may have fewer than the machine
    cacheable = "vision_backbone" not in trainer.trained_modules and not data.augmentations
    verdict = trainer.waits.verdict(data.num_workers, cores // trainer.world.local_world_size, cacheable)
    (log.warning if trainer.waits.share > LOUD_WAITS else log.info)(verdict)


def start_metrics(trainer: Trainer) -> Metrics:
    """The trackers of a run, at the position where it stands."""
    cfg = trainer.cfg
    hparams: dict[str, Any] = json.loads(json.dumps(draccus.encode(cfg), default=str))
    # It should be a file or a variable's name, but people do paste the token itself.
    hparams.pop("hf_token", None)
    metrics = Metrics(
        trainer.run_dir,
        trainer.run_dir.name,
        stage=cfg.stage,
        trackers=cfg.trackers,
        hparams=hparams,
        wandb_project=cfg.wandb_project,
        wandb_entity=cfg.wandb_entity,
    )
    metrics.start(trainer.at.step, trainer.total_steps)
    return metrics


def nothing_to_learn(trainer: Trainer, batches: Sequence[Batch]) -> str:
    """Text for a step without one label token."""
    ids = [i for batch in batches for i in batch.ids]
    return (
        f"step {trainer.at.step + 1}: none of its samples ({some(ids)}) has a token to learn; raise "
        f"--model.llm_max_length {trainer.cfg.model.llm_max_length}, or look at the answers in these rows"
    )


def advice(trainer: Trainer) -> str:
    """What to do about a loss or gradient that is not finite."""
    last = folder.newest(trainer.run_dir)
    prefix = "align" if trainer.stage.stage == "align" else "finetune"
    return (
        f"Last checkpoint: {last or 'none'}. Look at these samples, or lower "
        f"--model.{prefix}_learning_rate {trainer.stage.learning_rate:g}"
    )


def validated(trainer: Trainer, parts: Sequence[Measured]) -> None:
    """Tell what the validation has measured; trainer.validation_loss is the mean of it."""
    loss, by_part = trainer.validation_loss, losses_by_part(parts)
    clips = Counter(part.data for part in parts)
    told = {n: v for n, v in by_part.items() if ", L=" not in n or clips[n.partition(", L=")[0]] > 1}
    several = "; ".join(f"{name}: {value:.4f}" for name, value in told.items())
    log.info(f"step {trainer.at.step}: validation loss {loss:.4f}" + (f" ({several})" if len(told) > 1 else ""))
    if trainer.metrics is not None and loss is not None:
        trainer.metrics.log_validation(trainer.at.step, loss, sum(part.tokens for part in parts), by_part)


def scored(trainer: Trainer, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Tell the scores of answers by dataset."""
    for data, of in scores.items():
        text = ", ".join(f"{name} {value:.4f}" for name, value in of.items())
        log.info(f"step {trainer.at.step}: {trainer.cfg.eval_task} on {data}: {text}")
    if trainer.metrics is not None:
        trainer.metrics.log_scores(trainer.at.step, scores)


def loader_size(loader: Any) -> str:
    """Number of examples of a loader's first epoch, with thousands apart."""
    return f"{loader.num_examples(0):,}"


def _weights(trainer: Trainer) -> str:
    link = trainer.run_dir / folder.FOLDER / folder.LATEST
    return f"Weights: {link} -> {link.readlink()}" if link.is_symlink() else f"Weights: none at {link}"


def some(ids: Sequence[str]) -> str:
    """A few ids for a sentence, and how many more there are."""
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
