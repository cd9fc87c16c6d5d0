"""How the LLM attends while it is trained: `--model.attention auto|sdpa|flex|flash|varlen`.

Packed examples lie in one row, and no attention crosses their borders. `sdpa` and `varlen` are functions of our own in
Transformers' registry: in the place of a mask the layers get the borders, an int32 tensor [n + 1] on the CPU, and each
example attends causally to itself, so that work and memory grow with the sum of squared lengths, not with the square
of the sum: by Transformers' `sdpa`, or on some CPUs by blocks (causal.py). `flex` and `flash` are Transformers'
altogether; they find the borders from positions that restart.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prismatic.models.llm import causal, last_layer

if TYPE_CHECKING:
    from prismatic.models.llm.hf_causal import HFCausalLM

log = logging.getLogger(__name__)

FLAG = "--model.attention"
KINDS = ("auto", "sdpa", "flex", "flash", "varlen")
OURS = {"sdpa": "prismatic_sdpa", "varlen": "prismatic_varlen"}
"""Kind -> name in Transformers' registry, of the functions of this module."""
_THEIRS = {"flex": "flex_attention", "flash": "flash_attention_2"}


class _Borders:
    """The borders of the batch that is on its way through the model. taken: how many masks they stood in for."""

    def __init__(self, borders: torch.Tensor) -> None:
        self.borders, self.taken = borders, 0


# Only read where masks are made, in the model's own forward pass: layers that are recomputed later, in the backward
# pass, get the borders as their argument again.
_current: ContextVar[_Borders | None] = ContextVar("borders of packed examples", default=None)


def choose_attention(kind: str, device: torch.device, half: bool) -> str:
    """The kind to take on a device, "auto" resolved. half: layers compute in bf16 or fp16.

    Raises ValueError for an unknown kind, or one that is not there, saying why and what to pass.
    """
    if kind not in KINDS:
        raise ValueError(f"{FLAG} must be one of {', '.join(KINDS)}, got '{kind}'")
    if kind == "auto":
        return next((k for k in ("varlen", "flash") if _missing(k, device, half) is None), "sdpa")
    reason = _missing(kind, device, half)
    if reason is not None:
        raise ValueError(f"{FLAG} {kind} {reason}; pass {FLAG} auto to take the best one that is there")
    return kind


def use_attention(backbone: HFCausalLM, kind: str, device: torch.device, half: bool) -> str:
    """Let the LLM attend by `kind`; returns the name in Transformers' registry. Raises ValueError as choose_attention.

    With "auto", a family that has no SDPA, or attention code of its own, keeps what it has; so does one in which
    attention does not stop where positions restart (its examples are taken apart).
    """
    chosen, llm = choose_attention(kind, device, half), backbone.llm
    before = llm.config._attn_implementation
    fixed = not llm._can_set_attn_implementation() or not backbone.separates
    if kind == "auto" and (fixed or before == "eager"):
        log.debug("%s keeps its attention: %s", type(llm).__name__, before)
        return before
    if fixed:
        raise ValueError(f"{FLAG} {kind} is not for a {llm.config.model_type} model, whose attention is its own")
    if before == "eager" and chosen in OURS:
        raise ValueError(f"{FLAG} {kind}: {type(llm).__name__} has no SDPA attention; pass {FLAG} auto, or flex")
    _register()
    name = OURS.get(chosen) or _THEIRS[chosen]
    llm.set_attn_implementation(name)
    # It is told the borders of packed examples as attention is, so it goes with our own kinds.
    backbone.shortened = chosen in OURS and last_layer.shorten_last_layer(backbone)
    return name


@contextmanager
def packed(borders: torch.Tensor | None) -> Iterator[None]:
    """Inside, the model sees packed examples in one row. borders: int32 [n + 1] on the CPU, 0 to the row's length.

    Afterwards the borders must have stood in for a mask: a model that makes its masks by itself would have let examples
    see each other.
    """
    if borders is None:
        yield
        return
    current = _Borders(borders)
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)
    assert current.taken, "this model makes its masks by itself, so that packed examples see each other"


def borders_of(position_ids: torch.Tensor) -> torch.Tensor:
    """Where examples begin, and the end: int32 [n + 1] on the CPU, from positions int64 [S] that restart at 0."""
    starts = (position_ids == 0).nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([len(position_ids)])]).to("cpu", torch.int32)


@lru_cache(maxsize=1)
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(OURS["sdpa"], _by_segment)
    AttentionInterface.register(OURS["varlen"], _by_varlen)
    for name in OURS.values():
        AttentionMaskInterface.register(name, mask_of_borders)


def _missing(kind: str, device: torch.device, half: bool) -> str | None:
    """Why a kind cannot be had; None when it can."""
    if kind == "sdpa":
        return None
    if device.type != "cuda":
        return f"needs a GPU, and this run is on {device.type}"
    if kind == "flex":
        return None
    if not half:
        return "computes in bf16 only; it needs --model.enable_mixed_precision_training true"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or later"
    if kind == "varlen":
        return None if _varlen() else "is not in this version of PyTorch"
    return None if importlib.util.find_spec("flash_attn") else "needs the package flash-attn: pip install flash-attn"


@lru_cache(maxsize=1)
def _varlen() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def mask_of_borders(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """What stands in the place of a mask: the borders of packed examples, else Transformers' mask for SDPA."""
    from transformers.masking_utils import sdpa_mask

    current = _current.get()
    if current is None:
        return sdpa_mask(*args, **kwargs)
    current.taken += 1
    return current.borders


def _is_borders(mask: torch.Tensor | None) -> bool:
    return mask is not None and mask.ndim == 1


def _by_segment(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the examples of one row, one after the other. query, key, value: [B, heads, S, head width].

    Returns [B, S, heads, head width], as Transformers wants it. Without borders a row is an example.
    """
    if not _is_borders(attention_mask):
        return _attend(module, query, key, value, attention_mask, options), None
    return _loop(module, query, key, value, attention_mask, options), None


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attention of rows of one example each, causal where there is no mask."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    simple = mask is None and getattr(module, "is_causal", True) and options.get("is_causal") is not False
    if simple and causal.takes(query, key, value, options.get("dropout") or 0.0):
        return causal.attend(query, key, value, options.get("scaling")).transpose(1, 2).contiguous()
    return sdpa_attention_forward(module, query, key, value, mask, **options)[0]


@lru_cache(maxsize=1)
def keep_out_of_graphs() -> None:
    """To be called before layers are compiled: the loop over examples is not to be, which would be a graph for every
    number and length of them; nor is that of the last layer. Not said where they are defined: that alone imports the
    whole compiler, for seconds.
    """
    global _loop
    _loop = torch.compiler.disable(_loop)
    last_layer.keep_out_of_graphs()


def _loop(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    options: dict[str, Any],
) -> torch.Tensor:
    lengths = borders.diff().tolist()
    window = options.get("sliding_window")
    out = []
    for length, q, k, v in zip(lengths, *(t.split(lengths, dim=2) for t in (query, key, value)), strict=True):
        band = None
        if window is not None and length > window:
            band = causal.band(torch.arange(length, device=query.device), length, window)[None, None]
        out.append(_attend(module, q, k, v, band, options))
    return torch.cat(out, dim=1)


def _by_varlen(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The same in one kernel; rows that are not packed, fp32 and dropout go to `sdpa`."""
    simple = query.dtype in (torch.bfloat16, torch.float16) and not options.get("dropout")
    if not _is_borders(attention_mask) or not simple:
        return _by_segment(module, query, key, value, attention_mask, **options)
    varlen, more = _varlen(), {}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in inspect.signature(varlen).parameters:
            more["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    longest = int(attention_mask.diff().max())
    borders = attention_mask.to(query.device, non_blocking=True)
    window = options.get("sliding_window")
    out = varlen(
        *(t[0].transpose(0, 1) for t in (query, key, value)),  # [S, heads, head width]
        *(borders, borders, longest, longest),
        scale=options.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        **more,
    )
    return out[None], None
