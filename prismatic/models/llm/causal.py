"""Causal attention of one example: which keys a query looks at, and the work by blocks of queries on some CPUs.

PyTorch's attention on a CPU takes its fp32 products from MKL, as its linear layers do, at 60 to 85 GFLOP/s a core where
oneDNN reaches 200 and more (linear.py). So there, and for examples long enough, it is computed here: for a block of
queries at a time the scores with all keys up to it, softmax, and the product with the values. Nothing of that is kept.
The backward pass computes the weights of a block again, so that memory grows with the length, not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from prismatic.models.linear import prefers_onednn, product

_SHORTEST = 384  # positions; below, PyTorch's own is as fast
_ROWS = 256  # queries of a block, over all heads that share a key


def band(at: torch.Tensor, keys: int, window: int | None) -> torch.Tensor:
    """Which of the first `keys` positions queries at the positions `at` int64 [Q] look at: bool [Q, keys].

    None after their own, and with a window only their own and the `window` - 1 before it.
    """
    behind = at[:, None] - torch.arange(keys, device=at.device)[None]
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Whether `attend` is for them and faster than PyTorch's own here. Shapes as for `attend`."""
    plain = query.device.type == "cpu" and query.dtype == key.dtype == value.dtype == torch.float32 and not dropout
    alike = query.shape[2] == key.shape[2] >= _SHORTEST and key.shape == value.shape
    return plain and alike and prefers_onednn() and not torch.is_autocast_enabled("cpu")


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Causal attention. query [B, H, S, W]; key, value [B, Hkv, S, W], Hkv dividing H; fp32, on a CPU.

    scale: of the scores, W^-0.5 without. Returns [B, H, S, W], laid out in memory as the queries are.
    """
    return _attention(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)


# An operator of its own, so that recomputing layers in part keeps its result (train/layers.py), not those of its parts.
@torch.library.custom_op("prismatic::causal_attention", mutates_args=())
def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    out = torch.empty_like(query)
    for row, head, heads in _shared(query, key):
        keys, values = key[row, head].contiguous(), value[row, head].contiguous()
        for begin, end, later in _blocks(query, key):
            queries = query[row, heads, begin:end]
            chances = _chances((queries * scale).flatten(0, 1), keys[:end], later)
            out[row, heads, begin:end] = product(chances, values[:end].t()).view_as(queries)
    return out


@torch.library.custom_op("prismatic::causal_attention_backward", mutates_args=())
def _gradients(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for row, head, heads in _shared(query, key):
        keys, values = key[row, head].contiguous(), value[row, head].contiguous()
        for_keys, for_values = (keys.new_zeros(keys.shape[::-1]) for _ in range(2))  # [W, S]
        for begin, end, later in _blocks(query, key):
            queries = (query[row, heads, begin:end] * scale).flatten(0, 1)  # [q, W]
            chances = _chances(queries, keys[:end], later)
            above = gradient[row, heads, begin:end].flatten(0, 1)
            for_values[:, :end] += product(above.t(), chances.t())
            of_scores = product(above, values[:end])
            torch.ops.aten._softmax_backward_data(of_scores, chances, -1, chances.dtype, grad_input=of_scores)
            of_queries = of_query[row, heads, begin:end]
            torch.mul(product(of_scores, keys[:end].t()).view_as(of_queries), scale, out=of_queries)
            for_keys[:, :end] += product(queries.t(), of_scores.t())
        of_key[row, head], of_value[row, head] = for_keys.t(), for_values.t()
    return of_query, of_key, of_value


@_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(query)


@_gradients.register_fake
def _(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.scale = inputs[3]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_gradients(gradient, *ctx.saved_tensors, ctx.scale), None


_attention.register_autograd(_backward, setup_context=_keep)


def _shared(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[int, int, slice]]:
    """Each row and head of the keys, with the heads of the queries that share it."""
    group = query.shape[1] // key.shape[1]
    for row in range(query.shape[0]):
        for head in range(key.shape[1]):
            yield row, head, slice(head * group, (head + 1) * group)


def _blocks(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Begin and end of each block of queries, and which of the block's own positions each does not look at."""
    length, size = query.shape[2], max(32, _ROWS * key.shape[1] // query.shape[1])
    later = ~band(torch.arange(size), size, None)
    for begin in range(0, length, size):
        end = min(begin + size, length)
        yield begin, end, later[: end - begin, : end - begin]


def _chances(queries: torch.Tensor, keys: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """With what weights scaled queries [heads n, W] look at keys [k, W], whose last n are of the queries' positions."""
    scores = product(queries, keys)
    scores.view(-1, len(later), len(keys))[:, :, -len(later) :].masked_fill_(later, -torch.inf)
    return torch.softmax(scores, -1, out=scores)
