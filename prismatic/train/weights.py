"""Whole weights of a sharded model: gathering them, and the file of frozen modules that exist nowhere else."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor

from prismatic import dist
from prismatic.models.checkpoints import FROZEN_FILE
from prismatic.models.llm import lora
from prismatic.train import files


def gather(vlm: nn.Module, modules: Collection[str]) -> dict[str, torch.Tensor]:
    """Whole tensors of the named top-level modules on rank 0's CPU; {} elsewhere. Every process calls it.

    Of an LLM with adapters these are its own weights, without the adapters, under the names that they have without.
    Weights that share memory (a head tied to the embeddings) come out as copies: safetensors refuses shared memory,
    and a file in which every key is present loads everywhere.
    """
    return _whole(_of_modules(vlm, modules))


def gather_adapter(vlm: nn.Module) -> dict[str, torch.Tensor]:
    """The same of the LLM's adapters, under the names of peft's files; {} when there are none."""
    return _whole(_adapter(vlm))


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    owned: set[int] = set()
    for key, tensor in tensors.items():
        # A collective: every process takes part. Tensor after tensor, so that one whole tensor is on a device at once.
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.rank_zero():
            copy = whole.detach().cpu().contiguous()
            storage = copy.untyped_storage().data_ptr()
            weights[key] = copy.clone() if storage in owned else copy
            owned.add(storage)
    return weights


def num_bytes(vlm: nn.Module, modules: Collection[str]) -> int:
    """Size of what `gather` and `gather_adapter` give."""
    tensors = [*_of_modules(vlm, modules).values(), *_adapter(vlm).values()]
    return sum(t.numel() * t.element_size() for t in tensors)


def write_adapter(folder: Path, vlm: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """On rank 0, make a folder that peft reads, with what `gather_adapter` gave."""
    folder.mkdir()
    files.write_tensors(folder / lora.ADAPTER_WEIGHTS, tensors, {})
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
            files.write_tensors(partial, weights, {})
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


def _of_modules(vlm: nn.Module, modules: Collection[str]) -> dict[str, torch.Tensor]:
    state = {key: tensor for key, tensor in vlm.state_dict().items() if key.split(".", 1)[0] in modules}
    if not any(lora.has_adapter(module) for module in vlm.children()):
        return state
    return {lora.base_key(key): tensor for key, tensor in state.items() if not lora.is_adapter_key(key)}


def _adapter(vlm: nn.Module) -> dict[str, torch.Tensor]:
    return lora.to_file(vlm.state_dict()) if any(lora.has_adapter(module) for module in vlm.children()) else {}
