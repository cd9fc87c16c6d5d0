"""A model's twin on the meta device: the same code and sizes, no numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def meta_twin(vlm: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of `vlm` (on any device, not sharded) with its weights on the meta device, in `dtype` as it computes.

    Buffers keep their dtypes. The tokenizer is shared. The twin is alone: it has whole sequences.
    """
    llm = vlm.llm_backbone
    memo: dict[int, Any] = {id(llm.tokenizer): llm.tokenizer}
    if getattr(llm, "context", None) is not None:
        memo[id(llm.context)] = None
    with torch.no_grad():
        for parameter in vlm.parameters():
            empty = torch.empty(parameter.shape, dtype=dtype, device="meta")
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for buffer in vlm.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(vlm, memo)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, scaled dot-product attention keeps and needs what a fused kernel on a GPU does.

    On the meta device PyTorch takes the kernel that writes all scores down. (The function is replaced, not overridden
    by a mode: recomputing layers in a backward pass leaves modes behind.)
    """
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _stand_in
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def _stand_in(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    return _Attention.apply(query, key, value, attn_mask)


class _Attention(torch.autograd.Function):
    """Keeps queries, keys, values, output and an fp32 number a query; the backward pass sums in fp32."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """query [B, H, S, W]; key, value [B, Hkv, Skv, W]."""
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.empty_like(mask, dtype=query.dtype)  # The kernels add their mask
        # Laid out as the kernels do it, heads inside: what follows takes it apart without a copy.
        output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]).transpose(1, 2)
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, mask)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients like the inputs; grouped keys and values get theirs head by head first."""
        query, key, value, *_ = ctx.saved_tensors
        scratch = torch.empty_like(query, dtype=torch.float32)
        heads = query.shape[1]
        wide = [t.new_empty(t.shape[0], heads, *t.shape[2:]) for t in (key, value)]
        grads = [torch.empty_like(t) if t.shape[1] != heads else w for t, w in zip((key, value), wide, strict=True)]
        del scratch, wide
        return torch.empty_like(query), *grads, None
