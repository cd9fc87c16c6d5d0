"""Context parallelism: one sequence over several processes, each of which computes a part of its positions.

Everything of a layer but attention works on a position alone. In attention every process gathers the keys and values of
all positions and answers for its own queries: the exchange is that of PyTorch's context parallelism for FlexAttention,
and so is the cut, two pieces a process, one from either end, so that each looks back at as much as any other. Its other
mode, ring attention, knows no examples that share a row, and no CPU.

Loss and gradients are sums over positions, so what the processes find adds up to what one finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from prismatic.models.llm.hf_causal import HFCausalLM

FLAG = "--context_parallel_size"
NAME = "prismatic_context"
"""In Transformers' registry of attention functions."""


@dataclass(frozen=True)
class ContextShards:
    """Part `rank` of `size` of each sequence; `group` are the processes with the other parts."""

    rank: int
    size: int
    group: ProcessGroup

    def pieces(self, length: int) -> list[tuple[int, int]]:
        """Begin and end of this part's two pieces of a sequence, whose length they divide."""
        piece = length // (2 * self.size)
        return [(n * piece, (n + 1) * piece) for n in (self.rank, 2 * self.size - 1 - self.rank)]

    def take(
        self, embeds: torch.Tensor, position_ids: torch.Tensor | None, places: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """This part of a row: (embeds [1, s, D], positions [1, s], places [l], targets [l], borders int32 [n + 1]).

        embeds: [1, S, D]. position_ids: [1, S] where examples share the row. places, targets: [L], as for
        HFCausalLM.token_losses. The borders are those of all examples of the row, which is padded to a multiple of
        2 `size` by an example of its own. Raises ValueError for several rows.
        """
        if embeds.shape[0] != 1:
            raise ValueError(f"{FLAG} {self.size} takes batches of one row: pass --dataset.packing true")
        length, device = embeds.shape[1], embeds.device
        at = torch.arange(length, device=device) if position_ids is None else position_ids[0]
        missing = -length % (2 * self.size)
        embeds = F.pad(embeds, (0, 0, 0, missing))
        at = torch.cat([at, torch.arange(missing, device=device)])
        starts = (at == 0).nonzero()[:, 0]
        borders = torch.cat([starts, starts.new_tensor([len(at)])]).to("cpu", torch.int32)
        own = torch.cat([torch.arange(*piece, device=device) for piece in self.pieces(len(at))])
        where = torch.full((len(at),), -1, device=device).index_copy(0, own, torch.arange(len(own), device=device))
        mine = where[places] >= 0
        return embeds[:, own], at[own][None], where[places][mine], targets[mine], borders

    def whole(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the whole sequence [1, H, S, W], in order, from those of this part [1, H, s, W]."""
        keys, values = (found.chunk(2 * self.size, dim=2) for found in self.gather(key, value))
        return torch.cat([*keys[::2], *keys[::-2]], dim=2), torch.cat([*values[::2], *values[::-2]], dim=2)

    def gather(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of all parts [1, H, S, W], one part after the other; the gradient of each part is the sum of all."""
        from torch.distributed.tensor.experimental._context_parallel import flex_cp_allgather  # imports the compiler

        return flex_cp_allgather(key, value, 2, self.group.group_name)


def use_context(backbone: HFCausalLM, shards: ContextShards) -> None:
    """Let the LLM compute a part of each sequence. Raises ValueError for a family whose attention is its own."""
    from transformers import AttentionInterface, AttentionMaskInterface

    from prismatic.models.llm.attention import mask_of_borders

    llm = backbone.llm
    capped = getattr(llm.config, "attn_logit_softcapping", None)
    if not llm._can_set_attn_implementation() or not backbone.separates or capped:
        raise ValueError(
            f"{FLAG} {shards.size} is not for a {llm.config.model_type} model, whose attention is its own; leave it out"
        )
    AttentionInterface.register(NAME, partial(_attend, shards))
    AttentionMaskInterface.register(NAME, mask_of_borders)
    llm.set_attn_implementation(NAME)
    backbone.context = shards


def _attend(
    shards: ContextShards,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of this part's queries [1, heads, s, width] to all keys. Returns [1, s, heads, width].

    attention_mask: the borders of examples. Outside training there are none, and every process has whole sequences.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.ndim != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    keys, values = shards.whole(key, value)
    borders = attention_mask.tolist()
    out, seen = [], 0
    for begin, end in shards.pieces(borders[-1]):
        for first, last in pairwise(borders):
            start, stop = max(begin, first), min(end, last)
            if start < stop:
                own = query[:, :, seen : seen + stop - start]
                seen += stop - start
                out.append(_segment(own, keys[:, :, first:stop], values[:, :, first:stop], options))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _segment(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Queries of the last positions of an example, over all its positions up to there."""
    from torch.nn.attention.bias import causal_lower_right  # brings in the whole compiler, for seconds

    few, many, window = query.shape[2], keys.shape[2], options.get("sliding_window")
    if window is not None and many > window:
        at = torch.arange(many, device=query.device)
        behind = at[many - few :, None] - at[None]
        mask: Any = (behind >= 0) & (behind < window)
    else:
        mask = None if few == many else causal_lower_right(few, many)
    groups = query.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(
        *(query, keys, values),
        attn_mask=mask,
        dropout_p=options.get("dropout") or 0.0,
        is_causal=mask is None,
        scale=options.get("scaling"),
    )
