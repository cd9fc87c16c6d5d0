"""The part of a prompt that has been computed before: found, or computed once for several prompts that share it.

Keys and values of a prompt's beginning do not depend on what follows. The rest of the prompt is run by the LLM's own
`generate`, which takes it up where the cache ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from prismatic.models.memory import Remembered, common_length

if TYPE_CHECKING:
    from prismatic.models.kv_cache import PromptCache
    from prismatic.models.vlm import PrismaticVLM

# With keywords of `generate` beyond these (an assistant, a cache of another kind, ...) its own cache is used.
_KNOWN = frozenset(
    (
        "max_new_tokens min_new_tokens min_length do_sample temperature top_k top_p min_p typical_p num_beams "
        "length_penalty early_stopping repetition_penalty no_repeat_ngram_size eos_token_id suppress_tokens "
        "begin_suppress_tokens bad_words_ids stop_strings tokenizer stopping_criteria logits_processor streamer "
        "use_cache max_time renormalize_logits exponential_decay_length_penalty forced_eos_token_id"
    ).split()
)


class PromptRow(NamedTuple):
    """embeds: [S, D]. positions: int64 [3, S] for models that place visual tokens in space, else None. names: int64
    [S], what each position stands for (memory.identity).
    """

    embeds: torch.Tensor
    positions: torch.Tensor | None
    names: np.ndarray

    @property
    def places(self) -> np.ndarray | None:
        """The positions as an array."""
        return None if self.positions is None else self.positions.cpu().numpy()

    @property
    def visual_end(self) -> int:
        """The position after the last visual token; 0 without any."""
        return int(np.flatnonzero(self.names < 0)[-1]) + 1 if (self.names < 0).any() else 0


class Prefix:
    """The cache that a call of `generate` starts with. kwargs: of that call."""

    def __init__(self, vlm: PrismaticVLM, rows: Sequence[PromptRow], kwargs: dict[str, Any]) -> None:
        self.vlm, self.rows = vlm, rows
        self.cache: PromptCache | None = None
        self._made: list[Remembered] = []
        config = vlm.llm_backbone.llm.generation_config
        self.beams = kwargs.get("num_beams") or getattr(config, "num_beams", None) or 1
        if not vlm.llm_backbone.separates or not kwargs.keys() <= _KNOWN or kwargs.get("use_cache") is False:
            return
        room = max(len(row.embeds) for row in rows) + kwargs["max_new_tokens"]
        self.cache = self._of_one(room) if len(rows) == 1 else self._of_batch(room)

    def given(self) -> dict[str, Any]:
        """Keywords for `generate`."""
        # A publisher's default kind of cache would contradict the one that is given.
        return {} if self.cache is None else {"past_key_values": self.cache, "cache_implementation": None}

    def keep(self, new: torch.Tensor) -> None:
        """Remember prompt and answer; new: ids int64 [B, n] that `generate` returned."""
        if self.cache is None or len(self.rows) > 1 or self.beams > 1:
            return
        row = self.rows[0]
        names = np.concatenate([row.names, new[0].cpu().numpy()])[: self.cache.get_seq_length()]
        places = row.places
        if places is not None:
            more = places[:, -1:] + 1 + np.arange(len(names) - places.shape[1])
            places = np.concatenate([places, more], axis=1)
        self.cache.cut(len(names))
        self.vlm.memory.keep(Remembered(names, places, self.cache))

    def _of_one(self, room: int) -> PromptCache:
        from prismatic.models.kv_cache import PromptCache

        row = self.rows[0]
        if self.beams == 1:
            return self.vlm.memory.take(row.names, row.places, room) or PromptCache(room)
        # All but the last token once, not once a beam.
        length = len(row.embeds) - 1
        cache = self._beginning(row, length)
        return cache.beginning(length, room, self.beams) if cache else PromptCache(room)

    def _of_batch(self, room: int) -> PromptCache | None:
        """Rows that share a beginning, or whose beginning is known, take it; where no row does, an empty cache."""
        from prismatic.models.kv_cache import PromptCache, padded_left

        empty = PromptCache(room) if self.beams == 1 else None
        lengths = [max(self._known(row), self._shared(row)) for row in self.rows]
        if not any(lengths):
            return empty
        lengths = [n or min(row.visual_end, len(row.embeds) - 1) for n, row in zip(lengths, self.rows, strict=True)]
        # The same number of tokens is left for each row to be computed, so that padding stands at the left alone.
        left = max(len(row.embeds) - n for n, row in zip(lengths, self.rows, strict=True))
        lengths = [max(0, len(row.embeds) - left) for row in self.rows]
        width = max(lengths)
        if not width:
            return empty
        caches = [self._beginning(row, n) for row, n in zip(self.rows, lengths, strict=True)]
        cache = padded_left(caches, lengths, width, room)
        return cache if self.beams == 1 else cache.beginning(width, room, self.beams)

    def _known(self, row: PromptRow) -> int:
        """How many positions of a row are known; 0 where that is less than its clips, or half of its text."""
        known = self.vlm.memory.find(row.names, row.places)[1]
        return known if known >= (row.visual_end or len(row.names) // 2) else 0

    def _shared(self, row: PromptRow) -> int:
        """How many positions from the start all other rows of the batch with the same clips have, too."""
        end, most = row.visual_end, len(row.names) - 1
        common = [common_length(row.names, other.names) for other in self.rows if other is not row]
        return min([most, *(n for n in common if n >= end)]) if end and any(n >= end for n in common) else 0

    def _beginning(self, row: PromptRow, length: int) -> PromptCache | None:
        """Keys and values of the first `length` positions (and perhaps more) of a row; not to be written to."""
        from prismatic.models.kv_cache import PromptCache

        if not length:
            return None
        names, places = row.names[: length + 1], None if row.places is None else row.places[:, : length + 1]
        found, known = self.vlm.memory.find(names, places)
        for made in self._made:
            if (common := made.common(names, places)) > known:
                found, known = made, common
        if found is not None and known == length:
            return found.cache
        cache = found.cache.beginning(known, length) if found else PromptCache(length)
        _continue(self.vlm, row, cache, length)
        made = _remembered(row, cache, length)
        self._made.append(made)
        self.vlm.memory.keep(made)
        return cache


def _continue(vlm: PrismaticVLM, row: PromptRow, cache: PromptCache, length: int) -> None:
    """Append the positions of a row up to `length` to what the cache has."""
    start = cache.get_seq_length()
    given = {} if row.positions is None else {"position_ids": row.positions[:, None, start:length]}
    embeds = row.embeds[None, start:length]
    llm = vlm.llm_backbone.llm
    llm(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1, **given)


def _remembered(row: PromptRow, cache: PromptCache, length: int) -> Remembered:
    places = row.places
    return Remembered(row.names[:length], None if places is None else places[:, :length], cache)
