"""The folder of a run: made once, with the configuration that made it, and refused to another configuration."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import draccus

from prismatic import dist
from prismatic.conf.run import PretrainConfig
from prismatic.train import folder, lock

log = logging.getLogger(__name__)

# What may change between the start of a run and its continuation without changing what is computed.
FREE = {
    *("val_dataset", "resume", "checkpoint_interval", "keep_checkpoints", "validation_interval", "device", "dry_run"),
    *("checkpoint_minutes", "checkpoint_async", "keep_best", "on_save_error"),
    *("val_datasets", "eval_task", "eval_examples", "eval_interval", "eval_max_new_tokens", "best_metric"),
    *("on_nan", "max_nan_steps", "max_gradient", "profile", "peak_tflops", "dataset.decode_timeout"),
    *("hf_token", "plugins", "trackers", "wandb_project", "wandb_entity", "run_id", "run_root_dir"),
    *("device_memory", "longest_batch_first", "context_parallel_size", "model.cpu_offload"),
    *("model.attention", "model.activation_checkpointing", "model.compile", "model.tf32"),
    *("model.enable_gradient_checkpointing", "model.trust_remote_code", "model.reduce_in_full_precision"),
    *("model.align_train_strategy", "model.finetune_train_strategy"),
    *("model.align_per_device_batch_size", "model.finetune_per_device_batch_size"),
    *("dataset.num_workers", "dataset.decoder", "dataset.on_error", "dataset.max_skipped_share", "dataset.metric"),
    *("dataset.packing", "dataset.prefetch", "dataset.feature_cache", "dataset.feature_cache_limit"),
}


def prepare_run_dir(cfg: PretrainConfig) -> Path:
    """Make the run folder and write config.yaml and config.json; every process calls it.

    A folder that is there is gone on with, unless `--resume never` (it is then renamed, nothing is deleted). It is this
    process's until it ends. Raises ValueError when it was made with other settings, cannot be written, or another
    process trains there.
    """
    run_dir = cfg.run_root_dir / cfg.resolved_run_id()
    problem = None
    if dist.rank_zero():
        try:
            _prepare(run_dir, cfg)
        except ValueError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{run_dir} cannot be written: {error.strerror or error}; pass another --run_root_dir, or mend it"
    problem = dist.broadcast_object(problem)
    if problem is not None:
        raise ValueError(problem)
    return run_dir


def _prepare(run_dir: Path, cfg: PretrainConfig) -> None:
    if run_dir.exists():
        lock.take(run_dir)
        if cfg.resume == "never":
            _set_aside(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock.take(run_dir)
    config = run_dir / "config.json"
    started = any((run_dir / "checkpoints").glob("step-*"))
    if not started:
        # Of a run that never saved anything, a tokenizer trained on other texts may be left.
        shutil.rmtree(run_dir / folder.LLM_DEFINITION, ignore_errors=True)
    encoded = json.loads(json.dumps(draccus.encode(cfg), default=str))
    if started and config.is_file():
        changed = differences(completed(json.loads(config.read_text(encoding="utf-8"))), encoded)
        if changed:
            more = " ..." if len(changed) > 4 else ""
            raise ValueError(
                f"{run_dir} was made with other settings: {'; '.join(changed[:4])}{more}. Give the same settings to go "
                f"on with it, another --run_id for a new run (--resume {run_dir} starts it where this one stands), "
                "or --resume never to start over"
            )
    for name, text in (("config.yaml", draccus.dump(cfg)), ("config.json", json.dumps(encoded, indent=2))):
        partial = run_dir / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(run_dir / name)


def _set_aside(run_dir: Path) -> None:
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.replaced-{number}")).exists():
        number += 1
    run_dir.rename(aside)
    log.warning("--resume never: the earlier run of this name is now %s", aside)


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the defaults of fields that did not exist yet when it was written.

    A field comes into being with the default that does what was done before it.
    """
    choices = {part: {"type": saved[part]["type"]} for part in ("model", "dataset") if "type" in saved.get(part, {})}
    default = draccus.decode(PretrainConfig, choices)
    return _over(default, json.loads(json.dumps(draccus.encode(default), default=str)), saved)


def _over(default: Any, encoded: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    # Only configurations are completed: a dict of free options is one value.
    parts = {
        name: _over(getattr(default, name), encoded[name], saved[name])
        for name in encoded.keys() & saved.keys()
        if is_dataclass(getattr(default, name, None)) and isinstance(saved[name], dict)
    }
    return {**encoded, **saved, **parts}


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ and matter to what is computed, as texts "--flag before -> now"."""
    changed = []
    for name in sorted(before.keys() | now.keys()):
        flag, old, new = prefix + name, before.get(name), now.get(name)
        if flag in FREE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and (not prefix or name == "lora"):
            changed += differences(old, new, f"{flag}.")
        else:
            changed.append(f"--{flag} {old} -> {new}")
    return changed
