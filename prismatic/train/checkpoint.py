"""Checkpoints of a run: a resumable one per `step-000100/`, and its weights in one file for loading.

    checkpoints/step-000100/                                   model and optimizer (sharded), state.json
    checkpoints/step-000100-epoch-01-loss=1.2345.safetensors   the trained modules, whole
    checkpoints/step-000100-epoch-01-loss=1.2345-adapter/      LoRA adapters, as peft saves them, where there are some
    checkpoints/latest-checkpoint.safetensors, latest-adapter  links to the newest of those
    checkpoints/frozen-backbones.safetensors                   frozen modules whose random weights exist nowhere else

Everything is written under a name that no reader looks at, synced, and renamed. Random numbers and the schedule need
no place here: both are pure functions of the step (see trainer.py and optim.py).
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from prismatic import dist
from prismatic.train import files, weights
from prismatic.train.errors import CheckpointError
from prismatic.train.folder import (
    FOLDER,
    STATE,
    adapter_name,
    first_line,
    incomplete,
    newest,
    point_latest,
    prune,
    read_state,
)
from prismatic.train.optim import averaged
from prismatic.train.reader import TensorPlanner, TensorReader

log = logging.getLogger(__name__)


def save(
    run_dir: Path,
    vlm: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    modules: Sequence[str],
    loss: float,
    keep: int,
) -> Path:
    """Write a checkpoint; every process calls it. Returns the consolidated file (where `latest` then points).

    Args:
        state: JSON values that `restore` gives back; "step" and "epoch" (epochs done) name the files.
        modules: top-level modules of `vlm` that go whole into the consolidated file (the trained ones). Adapters of
            the LLM are saved beside it.
        loss: shown in the file's name. keep: how many resumable checkpoints stay, newest first.

    Raises CheckpointError on a full disk or without permission; the temporary files are gone then, the old ones whole.
    """
    folder, name = run_dir / FOLDER, f"step-{state['step']:06d}"
    weights_name = f"{name}-epoch-{state['epoch']:02d}-loss={loss:.4f}.safetensors"
    names = (name, weights_name, adapter_name(weights_name))
    partial, weights_partial, adapter_partial = (folder / f".{n}{files.PARTIAL}" for n in names)
    tensors = {"model": _trained(vlm), "optimizer": get_optimizer_state_dict(vlm, optimizer)["state"]}
    job = files.Writing(folder / name, _num_bytes(tensors) + weights.num_bytes(vlm, modules), newest(run_dir))

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        files.check_space(folder, job.needed)
        partial.mkdir()

    def commit() -> None:
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        files.write_json(partial / STATE, {**state, "files": sizes})
        files.sync(partial)
        files.write_tensors(weights_partial, whole, {"step": str(state["step"]), "epoch": str(state["epoch"])})
        if adapter:
            weights.write_adapter(adapter_partial, vlm, adapter)
            files.replace(adapter_partial, folder / adapter_name(weights_name))
        # The weights first: a kill between the renames then leaves a link to whole weights, and a run that goes on
        # from the checkpoint before writes the same file again.
        os.replace(weights_partial, folder / weights_name)
        point_latest(folder, weights_name)
        files.replace(partial, folder / name)
        files.sync(folder)

    try:
        job.on_rank_zero(prepare)
        with job.errors():
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(partial))
        with averaged(optimizer) as swapped:
            whole, adapter = weights.gather(vlm, modules), weights.gather_adapter(vlm)
            if swapped:  # What was gathered may share memory with the weights, which go back to what they were
                whole, adapter = ({k: t.clone() for k, t in tensors.items()} for tensors in (whole, adapter))
        job.on_rank_zero(commit)
    except CheckpointError:
        _tidy(folder)
        raise
    prune(run_dir, keep)
    return folder / weights_name


def restore(checkpoint: Path, vlm: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a `step-000100/` folder into a sharded model and its optimizer, on any number of processes.

    Returns the `state` that was saved. Raises CheckpointError when files are missing, cut short, or do not fit.
    """
    problem = incomplete(checkpoint)
    if problem:
        raise CheckpointError(f"the checkpoint {checkpoint} cannot be used: {problem}")
    optimizer_state = get_optimizer_state_dict(vlm, optimizer)
    tensors = {"model": _trained(vlm), "optimizer": optimizer_state["state"]}
    try:
        dcp.load(tensors, storage_reader=TensorReader(checkpoint), planner=TensorPlanner())
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, dcp.CheckpointException) as error:
        raise CheckpointError(f"the checkpoint {checkpoint} does not fit this model: {first_line(error)}") from error
    set_model_state_dict(vlm, tensors["model"], options=StateDictOptions(strict=False))
    groups = optimizer_state["param_groups"]
    set_optimizer_state_dict(vlm, optimizer, {"state": tensors["optimizer"], "param_groups": groups})
    return read_state(checkpoint)


def check_room(run_dir: Path, vlm: nn.Module, modules: Sequence[str]) -> None:
    """Before hours are spent: is there permission and room for one checkpoint? Raises CheckpointError."""
    folder = run_dir / FOLDER
    # Model, two moments of AdamW, and the consolidated file.
    trained = sum(p.numel() * p.element_size() for p in vlm.parameters() if p.requires_grad)
    job = files.Writing(folder / "step-...", 3 * trained + weights.num_bytes(vlm, modules), newest(run_dir))

    def check() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        files.check_space(folder, job.needed)
        probe = folder / f".probe{files.PARTIAL}"
        probe.write_bytes(b"0")
        probe.unlink()

    job.on_rank_zero(check)


def _trained(vlm: nn.Module) -> dict[str, Any]:
    return get_model_state_dict(vlm, options=StateDictOptions(ignore_frozen_params=True))


def _num_bytes(tree: Any) -> int:
    if isinstance(tree, dict):
        return sum(_num_bytes(value) for value in tree.values())
    return tree.numel() * tree.element_size()


def _tidy(folder: Path) -> None:
    if dist.rank_zero():
        try:
            files.remove_leftovers(folder)
        except OSError as error:
            log.warning(f"Could not remove the temporary files in {folder}: {error}")
