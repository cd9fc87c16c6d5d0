"""Whole weights of a sharded model: gathering them, and the file of frozen modules that exist nowhere else."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor

from prismatic import dist
from prismatic.models.checkpoints import FROZEN_FILE
from prismatic.models.llm import lora
from prismatic.train import files
from prismatic.train.staging import local


@dataclass(frozen=True)
class Whole:
    """What the consolidated file and the adapters' file hold: {name in the file: name in the model's state}."""

    weights: dict[str, str]
    adapter: dict[str, str]

    @classmethod
    def of(cls, vlm: nn.Module, modules: Collection[str]) -> Whole:
        """Of the named top-level modules (an LLM's own weights, without its adapters), and of all adapters."""
        names = {name: name for name in vlm.state_dict()}
        adapted = any(lora.has_adapter(module) for module in vlm.children())
        own = [name for name in names if name.split(".", 1)[0] in modules]
        own = [name for name in own if not (adapted and lora.is_adapter_key(name))]
        return cls(
            {lora.base_key(name) if adapted else name: name for name in own}, lora.to_file(names) if adapted else {}
        )

    def keys(self) -> set[str]:
        """Names in the model's state."""
        return {*self.weights.values(), *self.adapter.values()}

    def num_bytes(self, *sources: Mapping[str, torch.Tensor]) -> int:
        """Size of what `assemble` gives, with the tensors of these sources."""
        found = {key: tensor for source in sources for key, tensor in source.items()}
        tensors = [found[name] for name in [*self.weights.values(), *self.adapter.values()] if name in found]
        return sum(t.numel() * t.element_size() for t in tensors)

    def assemble(self, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The tensors of both files.

        Weights that share memory (a head tied to the embeddings) come out as copies: safetensors refuses shared
        memory, and a file in which every key is present loads everywhere.
        """
        return _unshared({k: state[n] for k, n in self.weights.items()}), _unshared(
            {k: state[n] for k, n in self.adapter.items()}
        )


def gather(vlm: nn.Module, modules: Collection[str]) -> dict[str, torch.Tensor]:
    """Whole tensors of the named top-level modules on rank 0's CPU; {} elsewhere. Every process calls it.

    Of an LLM with adapters these are its own weights, without the adapters, under the names that they have without.
    """
    whole = Whole.of(vlm, modules)
    found = gather_named(vlm, set(whole.weights.values()))
    return _unshared({key: found[name] for key, name in whole.weights.items()}) if dist.rank_zero() else {}


def gather_named(vlm: nn.Module, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Whole tensors of these names of the model's state on rank 0's CPU; {} elsewhere. Every process calls it."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in vlm.state_dict().items():
        if name in names:
            # A collective: every process takes part. Tensor after tensor: one whole tensor is on a device at once.
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if dist.rank_zero():
                found[name] = host_copy(whole)
    return found


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor, on the CPU and contiguous; a copy only where it was not so."""
    return local(tensor).cpu().contiguous()


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    owned: set[int] = set()
    separate: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone() if storage in owned else tensor
        owned.add(storage)
    return separate


def num_bytes(vlm: nn.Module, modules: Collection[str]) -> int:
    """Size of the consolidated file and of the adapters' file."""
    return Whole.of(vlm, modules).num_bytes(vlm.state_dict())


def write_adapter(folder: Path, vlm: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """On rank 0, make a folder that peft reads, with tensors under the names of peft's files."""
    folder.mkdir()
    files.write_tensors(folder / lora.ADAPTER_WEIGHTS, tensors)
    lora.write_config(vlm.llm_backbone, folder)
    files.sync(folder)


def save_frozen(folder: Path, vlm: nn.Module, modules: Sequence[str]) -> None:
    """Write the weights of frozen modules to `folder`; every process calls it.

    Raises CheckpointError on a full disk or without permission.
    """
    path, partial = folder / FROZEN_FILE, folder / f".{FROZEN_FILE}{files.PARTIAL}"
    job = files.Writing(path, num_bytes(vlm, modules))

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files.check_space(folder, job.needed)

    def write() -> None:
        try:
            files.write_tensors(partial, weights)
            os.replace(partial, path)
            files.sync(folder)
        finally:
            partial.unlink(missing_ok=True)

    job.on_rank_zero(prepare)
    weights = gather(vlm, modules)
    job.on_rank_zero(write)


def load_frozen(folder: Path, vlm: nn.Module) -> bool:
    """Load what `save_frozen` wrote into a sharded model; False when there is no such file."""
    from safetensors.torch import load_file

    path = folder / FROZEN_FILE
    if not path.exists():
        return False
    options = StateDictOptions(full_state_dict=True, strict=False)
    names = {lora.base_key(key): key for key in vlm.state_dict() if not lora.is_adapter_key(key)}
    set_model_state_dict(vlm, {names[key]: tensor for key, tensor in load_file(path).items()}, options=options)
    return True
