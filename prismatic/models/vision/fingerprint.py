"""What a vision backbone computes, as a hash: weights, build and normalisation. Two that differ in a bit differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile and of activation checkpointing


def fingerprint(tower: nn.Module) -> str:
    """Hash of a backbone as it computes now: 64 hexadecimal characters.

    Covers every parameter and buffer (name, dtype, shape, bits), every layer with its settings, and the image spec.
    Weights in bf16 are others than the same in fp32: so are their features. Not covered: the device and the kernels
    (whose results differ by rounding alone), and compilation. About a second a gigabyte. The weights must be whole on
    this process, not sharded.
    """
    hasher = hashlib.sha256(f"{type(tower).__qualname__}\n{tower.image_spec!r}\n".encode())
    for line in _structure(tower):
        hasher.update(f"{line}\n".encode())
    tensors = [*tower.named_parameters(remove_duplicate=False), *tower.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(((_plain(name), tensor) for name, tensor in tensors), key=lambda pair: pair[0]):
        assert not isinstance(tensor, DTensor), f"{name} is sharded"
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return hasher.hexdigest()


def _structure(tower: nn.Module) -> Iterator[str]:
    for name, module in tower.named_modules(remove_duplicate=False):
        inside = [child for child, _ in module.named_children()]
        if len(inside) == 1 and inside[0] in _WRAPPERS:
            continue
        # A subclass of nn.Linear differs in its kernel: which one is used depends on the machine.
        kind = "Linear" if isinstance(module, nn.Linear) else type(module).__qualname__
        yield f"{_plain(name)} {kind} {module.extra_repr()}"


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
