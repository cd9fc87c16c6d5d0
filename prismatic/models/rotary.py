"""Rotary frequencies keep their precision when a model is moved to bf16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn


class KeepsFrequencies(nn.Module):
    """A module whose fp32 buffers that are not saved (RoPE frequencies) stay fp32 under `.to(bfloat16)`.

    At position 9000, frequencies rounded to bf16 are an error of whole turns.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        kept = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set and buffer.dtype == torch.float32 and not buffer.is_meta
        ]
        super()._apply(fn, recurse)
        for module, name, buffer in kept:
            moved = module._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                module._buffers[name] = buffer.to(moved.device)
        return self
