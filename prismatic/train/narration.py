"""What a run says about itself: the lines at its beginning and end, and the texts of its errors."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus
import torch

from prismatic import dist
from prismatic.train import folder
from prismatic.train.console import duration, short
from prismatic.train.metrics import Metrics
from prismatic.train.step import Gradients
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
    val = f", {loader_size(trainer.val_loader)} for validation" if trainer.val_loader is not None else ""
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


def summary(trainer: Trainer, code: int, steps: int, seconds: float) -> None:
    """How it went and where the weights are."""
    if code:
        log.info(f"Stopped after step {trainer.at.step} of {trainer.total_steps}; the same command goes on from here")
    else:
        validation = trainer.validation_loss
        parts = [f"{steps} steps in {duration(seconds)}", f"loss {trainer.mean_loss:.4f}"]
        parts += [f"validation loss {validation:.4f}"] if validation is not None else []
        parts += [f"{trainer.skips.skipped} samples skipped"] if trainer.skips.skipped else []
        if trainer.world.device.type == "cuda":
            parts.append(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        log.info(f"Done: {', '.join(parts)}")
    log.info(_weights(trainer))
    if not code:
        log.info(f"Ask it:  python scripts/generate.py --model_path {trainer.run_dir} --media VIDEO --prompt QUESTION")
    if trainer.metrics is not None and trainer.metrics.unwritten:
        log.warning(f"{trainer.metrics.unwritten} rows of metrics could not be written: the disk is full")


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
        f"step {trainer.at.step + 1}: none of its samples ({_some(ids)}) has a token to learn; raise "
        f"--model.llm_max_length {trainer.cfg.model.llm_max_length}, or look at the answers in these rows"
    )


def not_finite(trainer: Trainer, batches: Sequence[Batch], gradients: Gradients) -> str:
    """Text for a loss or gradient that is not a number; every process calls it."""
    own = [i for b, value in zip(batches, gradients.losses, strict=True) if not math.isfinite(value) for i in b.ids]
    own = own or ([i for batch in batches for i in batch.ids] if math.isfinite(gradients.loss) else [])
    ids = [i for rank in dist.gather_objects(own) for i in rank]
    last = folder.newest(trainer.run_dir)
    prefix = "align" if trainer.stage.stage == "align" else "finetune"
    return (
        f"step {trainer.at.step + 1}: loss {gradients.loss:g} with gradient norm {float(gradients.norm):g} is not "
        f"finite; the weights were not changed by it. Samples concerned: {_some(ids)}. Last checkpoint: "
        f"{last or 'none'}. Look at these samples, or lower --model.{prefix}_learning_rate "
        f"{trainer.stage.learning_rate:g}"
    )


def loader_size(loader: Any) -> str:
    """Number of examples of a loader's first epoch, with thousands apart."""
    return f"{loader.num_examples(0):,}"


def _weights(trainer: Trainer) -> str:
    link = trainer.run_dir / folder.FOLDER / folder.LATEST
    return f"Weights: {link} -> {link.readlink()}" if link.is_symlink() else f"Weights: none at {link}"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
