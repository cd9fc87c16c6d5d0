"""Checkpoints of a run: a resumable one per `step-000100/`, and its weights in one file for loading.

    checkpoints/step-000100/                                   model and optimizer (sharded), state.json
    checkpoints/step-000100-epoch-01-loss=1.2345.safetensors   the trained modules, whole
    checkpoints/step-000100-epoch-01-loss=1.2345-adapter/      LoRA adapters, as peft saves them, where there are some
    checkpoints/latest-checkpoint.safetensors, latest-adapter  links to the newest of those
    checkpoints/best-checkpoint.safetensors, best-adapter      links to the best of them by --best_metric
    checkpoints/frozen-backbones.safetensors                   frozen modules whose random weights exist nowhere else

Everything is written under a name that no reader looks at, synced, and renamed. Random numbers and the schedule need
no place here: both are pure functions of the step (see seeding.py and optim.py). When a save happens, and in which
thread, is for saver.py to say.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed import ProcessGroup

from prismatic import dist
from prismatic.models.errors import first_line
from prismatic.train import files, folder, optimizer_state, weights
from prismatic.train.errors import CheckpointError
from prismatic.train.folder import FOLDER
from prismatic.train.reader import TensorPlanner, TensorReader
from prismatic.train.staging import Tree, num_bytes
from prismatic.train.writer import ChecksumWriter


def contents(vlm: nn.Module, optimizer: torch.optim.Optimizer) -> Tree:
    """The tensors of a checkpoint: {"model": trained weights and all buffers, "optimizer": {weight: {...}}}.

    They are the model's and the optimizer's own, not copies.
    """
    state = vlm.state_dict(keep_vars=True)
    model = {k: v for k, v in state.items() if not isinstance(v, nn.Parameter) or v.requires_grad}
    return {"model": model, "optimizer": optimizer_state.tensors(optimizer, optimizer_state.parameter_names(vlm))}


def detached(tree: Tree) -> Tree:
    """The same tensors, for those who read or fill them without gradients."""
    return {key: detached(value) if isinstance(value, dict) else value.detach() for key, value in tree.items()}


@dataclass(frozen=True)
class Groups:
    """Process groups of the thread that writes: of all processes, and of rank 0 alone."""

    all: ProcessGroup
    zero: ProcessGroup

    @classmethod
    def make(cls) -> Groups:
        """Every process calls it."""
        return cls(dist.side_group(), dist.side_group([0]))


@dataclass(frozen=True)
class Job:
    """A checkpoint to be written, complete in itself: nothing of it changes while training goes on.

    state: JSON values that `restore` gives back; "step" and "epoch" (epochs done) name the files, "measured" makes a
        best one: {"name", "value"}, the less the better; None for the value where nothing was measured at this step.
    tensors: what `contents` gave, on the host. whole: which of them, or of `given`, the consolidated file holds.
    given: on rank 0, whole tensors that go before those of `tensors`: frozen ones of modules that are trained in part,
        averages that an optimizer keeps of the weights. loss: shown in the file's name.
    keep, keep_best: how many resumable checkpoints stay, of the newest and of the best.
    """

    run_dir: Path
    vlm: nn.Module
    state: dict[str, Any]
    tensors: Tree
    whole: weights.Whole
    given: dict[str, torch.Tensor]
    loss: float
    keep: int
    keep_best: int
    groups: Groups

    @property
    def name(self) -> str:
        """Of the resumable folder."""
        return f"step-{self.state['step']:06d}"

    @property
    def weights_name(self) -> str:
        """Of the consolidated file."""
        return f"{self.name}-epoch-{self.state['epoch']:02d}-loss={self.loss:.4f}.safetensors"


def write(job: Job) -> Path:
    """Write a checkpoint; every process calls it, in the thread that `job.groups` are for. Returns the whole weights.

    Raises CheckpointError on a full disk or without permission; the temporary files are gone then, the old ones whole.
    """
    here, group = job.run_dir / FOLDER, job.groups.all
    names = (job.name, job.weights_name, folder.adapter_name(job.weights_name))
    partial, weights_partial, adapter_partial = (here / f".{name}{files.PARTIAL}" for name in names)
    needed = num_bytes(job.tensors, whole=True) + job.whole.num_bytes(job.tensors["model"], job.given)
    writing = files.Writing(here / job.name, needed, folder.newest(job.run_dir))

    def prepare() -> None:
        here.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(here)
        files.check_space(here, needed)
        partial.mkdir()

    def commit() -> None:
        # Before state.json is there: to be read, the shards must be the ones that were meant.
        whole, adapter = _whole(job, partial)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        sums = {name: crc for of_rank in checksums for name, crc in of_rank.items()}
        folder.write_state(partial, {**job.state, "weights": job.weights_name, "files": sizes, "checksums": sums})
        files.sync(partial)
        files.write_tensors(weights_partial, whole)
        if adapter:
            weights.write_adapter(adapter_partial, job.vlm, adapter)
            files.replace(adapter_partial, here / names[2])
        # The weights first: a kill between the renames then leaves a link to whole weights, and a run that goes on
        # from the checkpoint before writes the same file again.
        os.replace(weights_partial, here / job.weights_name)
        folder.point_latest(here, job.weights_name)
        files.replace(partial, here / job.name)
        if job.keep_best:
            folder.point_best(job.run_dir)
        files.sync(here)

    try:
        writing.on_rank_zero(prepare, group)
        writer = ChecksumWriter(partial)
        with writing.errors():
            dcp.save(job.tensors, storage_writer=writer, process_group=group)
        checksums = dist.gather_objects(writer.checksums, group)
        writing.on_rank_zero(commit, group)
    except CheckpointError:
        folder.tidy(here)
        raise
    folder.prune(job.run_dir, job.keep, job.keep_best)
    return here / job.weights_name


def restore(checkpoint: Path, vlm: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a `step-000100/` folder into a sharded model and its optimizer, on any number of processes.

    Returns the `state` that was saved. Raises CheckpointError when files are missing, cut short, or do not fit. Their
    checksums are not looked at: `folder.find` has done so.
    """
    problem = folder.incomplete(checkpoint)
    if problem:
        raise CheckpointError(f"the checkpoint {checkpoint} cannot be used: {problem}")
    state = folder.read_state(checkpoint)
    names = optimizer_state.parameter_names(vlm)
    try:
        optimizer_state.initialise(optimizer)
        kept = state.get("optimizer", {})
        optimizer_state.forget(optimizer, names, _with_state(checkpoint) | kept.get("numbers", {}).keys())
        tensors = detached(contents(vlm, optimizer))
        dcp.load(tensors, storage_reader=TensorReader(checkpoint), planner=TensorPlanner())
        optimizer_state.put_back(optimizer, names, kept.get("numbers", {}), kept.get("groups", []))
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, dcp.CheckpointException) as error:
        reason = first_line(error)
        raise CheckpointError(f"the checkpoint {checkpoint} does not fit this model: {reason}") from error
    return state


def check_room(run_dir: Path, vlm: nn.Module, optimizer: torch.optim.Optimizer, modules: Sequence[str]) -> None:
    """Before hours are spent: is there permission and room for one checkpoint? Raises CheckpointError."""
    here = run_dir / FOLDER
    trained = sum(p.numel() * p.element_size() for p in vlm.parameters() if p.requires_grad)
    # An optimizer makes its state in its first step; until then it says how much there will be.
    numbers = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    needed = trained + int(getattr(optimizer, "state_bytes", 0) * numbers) + weights.num_bytes(vlm, modules)
    writing = files.Writing(here / "step-...", needed, folder.newest(run_dir))

    def check() -> None:
        here.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(here)
        files.check_space(here, needed)
        probe = here / f".probe{files.PARTIAL}"
        probe.write_bytes(b"0")
        probe.unlink()

    writing.on_rank_zero(check)


def _with_state(checkpoint: Path) -> set[str]:
    """Parameters of which the checkpoint has tensors of the optimizer."""
    table = TensorReader(checkpoint).read_metadata().state_dict_metadata
    return {key.removeprefix("optimizer.").rpartition(".")[0] for key in table if key.startswith("optimizer.")}


def _whole(job: Job, partial: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """On rank 0, the tensors of the consolidated file and of the adapters.

    One process holds them whole. Of several, rank 0 reads them back from the shards that have just been written: what
    the network would carry lies on a disk that all of them reach.
    """
    model = job.tensors["model"]
    needed = {key: model[key] for key in job.whole.keys() - job.given.keys()}
    if job.groups.all.size() == 1:
        tensors = {key: weights.host_copy(tensor) for key, tensor in needed.items()}
    else:
        tensors = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in needed.items()}
        read = {"model": tensors}
        dcp.load(read, storage_reader=TensorReader(partial), planner=TensorPlanner(), process_group=job.groups.zero)
    return job.whole.assemble(tensors | job.given)
