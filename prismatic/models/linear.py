"""Linear layers through oneDNN on AMD processors with AVX-512, in fp32: about twice as fast as PyTorch's own there.

PyTorch's fp32 matrix products go to Intel's MKL, which runs its AVX2 code on processors of other makers. oneDNN, which
comes with PyTorch too, compiles AVX-512 code for them: 190-240 instead of 80-110 GFLOP/s on one Zen 5 core. Both
accumulate in fp32; sums are taken in another order. Elsewhere, and for other types, nothing changes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_FEWEST_ROWS = 4  # fewer are bound by reading the weight, and a small one is in a near cache, where MKL is faster
_LARGE_WEIGHT = 1 << 20  # elements; from here on oneDNN is faster for one row, too: a head of 32 MB in half the time
_MANY_ROWS = 512  # from here on a gradient of a wide weight is faster the other way round, copying included


@lru_cache(maxsize=1)
def prefers_onednn() -> bool:
    """Whether this machine's fp32 linear layers are faster by oneDNN. Depends on processor and PyTorch build alone."""
    describe = getattr(torch.cpu, "get_capabilities", None)
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if describe is None or not there or not torch.backends.mkl.is_available():
        return False
    facts = describe()
    return bool(facts.get("avx512_f")) and "AMD" in str(facts.get("cpu_name", ""))


class OneDNNLinear(nn.Linear):
    """nn.Linear whose fp32 products on a CPU are oneDNN's; of the same weights, names and results."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name that nn.Linear has
        """[..., in_features] to [..., out_features]."""
        if not _takes(input, self.weight):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            return _Linear.apply(input, self.weight, self.bias)
        return product(input, self.weight, self.bias)


def use_onednn(model: nn.Module) -> int:
    """Let the linear layers of `model` use oneDNN where that is faster; returns how many now do. May be called again.

    They change class in place, so that whoever holds one keeps it; subclasses of nn.Linear are left alone.
    """
    if not prefers_onednn():
        return 0
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = OneDNNLinear
    return len(layers)


def _takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if x.numel() < _FEWEST_ROWS * x.shape[-1] and weight.numel() < _LARGE_WEIGHT:
        return False
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and type(x) is torch.Tensor
    return plain and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] times the transpose of weight [N, K], plus bias [N], by oneDNN; fp32 on a CPU, any strides."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN has but its reference code for others, a thousand times as slow
    if torch.compiler.is_compiling():
        return _opaque_product(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# Inductor has a lowering of its own for oneDNN's operator, which takes nothing but weights packed ahead of time.
@torch.library.custom_op("prismatic::linear", mutates_args=())
def _opaque_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_opaque_product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    """The same with gradients, whose two products are linear layers again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # Only what a gradient needs: below a frozen weight the input is not kept.
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = product(grad, weight.t())
        rows = grad.flatten(0, -2)  # [M, N]
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(rows, x.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(dim=0)
        return of_x, of_weight, of_bias


def _weight_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """grad [M, N], x [M, K] to [N, K]."""
    if grad.shape[1] > x.shape[1] and len(grad) >= _MANY_ROWS:
        return product(x.t(), grad.t()).t().contiguous()
    return product(grad.t(), x.t())
