"""What a vision backbone computes, as a hash: weights, build and normalisation. Two that differ in a bit differ."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def fingerprint(tower: nn.Module) -> str:
    """Hash of a backbone as it computes now: 64 hexadecimal characters.

    Covers every parameter and buffer (name, dtype, shape, bits), the printed structure (layers and activations with
    their settings) and the image spec; not the device. Weights in bf16 are others than the same in fp32: so are their
    features. About a second a gigabyte. The weights must be whole on this process, not sharded.
    """
    hasher = hashlib.sha256(f"{type(tower).__qualname__}\n{tower!r}\n{tower.image_spec!r}\n".encode())
    tensors = [*tower.named_parameters(remove_duplicate=False), *tower.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        assert not isinstance(tensor, DTensor), f"{name} is sharded"
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        hasher.update(memoryview(whole.view(torch.uint8).numpy()))
    return hasher.hexdigest()
