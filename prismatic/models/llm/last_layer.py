"""The last decoder layer where its result is read: at the positions that predict labels, a few percent of all.

Keys and values are computed for every position; queries, attention, the sums and the MLP for the label positions alone.
The loss and its gradients stay what they are, since nothing else of that layer reaches them. For families whose layer
is Llama's (norm, attention, sum, norm, MLP, sum); others are left alone.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from prismatic.models.llm.causal import band

if TYPE_CHECKING:
    from prismatic.models.llm.hf_causal import HFCausalLM

ROWS = "prismatic_label_rows"
"""Keyword of the LLM's forward pass that takes the label positions to its layers: int64 [L], ascending, in the
flattened [B S]. As an argument, so that a layer which is computed again in the backward pass gets it again."""

_LIKE_LLAMA = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}


def shorten_last_layer(backbone: HFCausalLM) -> bool:
    """Let the last layer take ROWS, in place (its class changes, no name does). False for an unknown family."""
    layer = backbone.layers[-1]
    if type(layer).__name__ not in _LIKE_LLAMA or isinstance(layer, _AtRows):
        return isinstance(layer, _AtRows)
    layer.__class__ = type(type(layer).__name__, (_AtRows, type(layer)), {})
    return True


@lru_cache(maxsize=1)
def keep_out_of_graphs() -> None:
    """To be called before layers are compiled: what attention does here depends on how many labels each example has,
    so each batch would be a graph of its own.
    """
    global _by_example
    _by_example = torch.compiler.disable(_by_example)


class _AtRows:
    """Mixed into the class of a decoder layer."""

    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module
    self_attn: Any

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """[B, S, D] to the same, or with ROWS [L] to [1, L, D]. attention_mask: as attention.py has it."""
        rows = options.pop(ROWS, None)
        if rows is None:
            return super().forward(  # type: ignore[misc]
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **options
            )
        B, S, _ = hidden_states.shape
        # A mask of four dimensions is that of a window, in rows of one example each; the window is known here.
        packed = attention_mask is not None and attention_mask.ndim == 1
        borders = attention_mask if packed else torch.arange(0, B * S + 1, S)
        attended = self._attend(self.input_layernorm(hidden_states).flatten(0, 1), rows, borders, position_embeddings)
        kept = hidden_states.flatten(0, 1)[rows][None] + attended
        return kept + self.mlp(self.post_attention_layernorm(kept))

    def _attend(
        self, x: torch.Tensor, rows: torch.Tensor, borders: torch.Tensor, rotations: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Normed hidden states [B S, D] to what attention adds at the rows, [1, L, D]."""
        attn = self.self_attn
        rotate_half = inspect.getmodule(type(attn)).rotate_half  # type: ignore[union-attr]
        cos, sin = (t.expand(len(x) // t.shape[1], -1, -1).flatten(0, 1)[:, None] for t in rotations)  # [B S, 1, d]
        query = attn.q_proj(x[rows]).unflatten(-1, (-1, attn.head_dim))  # [L, heads, d]
        key, value = (p(x).unflatten(-1, (-1, attn.head_dim)) for p in (attn.k_proj, attn.v_proj))
        if hasattr(attn, "q_norm"):
            query, key = attn.q_norm(query), attn.k_norm(key)
        query = query * cos[rows] + rotate_half(query) * sin[rows]
        key = key * cos + rotate_half(key) * sin
        return attn.o_proj(_by_example(attn, query, key, value, rows, borders).flatten(1))[None]


def _by_example(
    attn: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: torch.Tensor, borders: torch.Tensor
) -> torch.Tensor:
    """Attention of queries [L, heads, d] at `rows` to keys and values [S, heads, d], causal within each example."""
    window = attn.sliding_window if hasattr(attn, "sliding_window") else getattr(attn.config, "sliding_window", None)
    dropout = attn.attention_dropout if attn.training else 0.0
    begins = borders.tolist()
    if rows.is_meta:  # a rehearsal without numbers: each example has its share of the labels, up to its end
        ends = [len(rows) * begin // begins[-1] for begin in begins]
    else:
        ends = torch.searchsorted(rows.cpu(), borders.long()).tolist()
    out = []
    for begin, end, first, last in zip(begins, begins[1:], ends, ends[1:], strict=False):
        if first == last:
            continue
        at = rows[first:last] - begin
        seen = end - begin if rows.is_meta else int(at[-1]) + 1  # nothing behind the last label is looked at
        mask = band(at, seen, window)
        parts = (query[first:last], key[begin : begin + seen], value[begin : begin + seen])
        q, k, v = (part.transpose(0, 1)[None] for part in parts)  # [1, heads, positions, d]
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=attn.scaling)
        out.append(attended[0].transpose(0, 1))
    return torch.cat(out)
