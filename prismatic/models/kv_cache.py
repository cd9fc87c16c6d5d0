"""Keys and values of the LLM in buffers with room to grow, and how those of several prompts become one batch.

The library's own cache copies everything once a token (`torch.cat`); here a token is written where there is room for
it. Layers with a sliding window keep all positions as well, so that a cache can be cut anywhere; the mask sees to the
window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

SPARE = 64  # positions that a buffer has more than it needs when it must grow


class GrowingLayer(DynamicLayer):
    """One layer. keys, values: [B, heads, S, head_dim], views of the first S positions of larger buffers."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, heads, n, head_dim] to both; the keys and values of all positions so far are returned."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._has_room(end):
            self._move(key_states, value_states, start, end)
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers or ())

    def _has_room(self, end: int) -> bool:
        # Reordered beams, or a batch that was repeated, are tensors of their own. What was made in inference mode may
        # not be written to outside of it.
        return (
            self._buffers is not None
            and end <= self._buffers[0].shape[-2]
            and (not self.get_seq_length() or self.keys.data_ptr() == self._buffers[0].data_ptr())
            and self.keys.shape[0] == self._buffers[0].shape[0]
            and self._buffers[0].is_inference() <= torch.is_inference_mode_enabled()
        )

    def _move(self, key_states: torch.Tensor, value_states: torch.Tensor, start: int, end: int) -> None:
        room = self.room if self.room >= end else end + SPARE + end // 8
        moved = []
        for new, old in ((key_states, self.keys), (value_states, self.values)):
            buffer = new.new_empty(*new.shape[:-2], room, new.shape[-1])
            if start:
                buffer[..., :start, :] = old
            moved.append(buffer)
        self._buffers = (moved[0], moved[1])


class PromptCache(DynamicCache):
    """The layers of one LLM. room: positions that buffers are made for; more are found when they are needed."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.layer_class_to_replicate = partial(GrowingLayer, room)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.nbytes for layer in self.layers)

    def cut(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self.crop(min(0, length - self.get_seq_length()))

    def beginning(self, length: int, room: int, repeats: int = 1) -> PromptCache:
        """A copy of the first `length` positions, each row `repeats` times, with room for `room`."""
        return _filled(
            room,
            [
                [part[..., :length, :].repeat_interleave(repeats, dim=0) for part in (layer.keys, layer.values)]
                for layer in self.layers
            ],
        )

    def row(self, index: int, length: int, room: int, repeats: int) -> PromptCache:
        """A copy of the last `length` positions of one row, `repeats` times, with room for `room`."""
        return _filled(
            room,
            [
                [
                    part[index : index + 1, :, -length:].expand(repeats, -1, -1, -1)
                    for part in (layer.keys, layer.values)
                ]
                for layer in self.layers
            ],
        )


def padded_left(caches: Sequence[PromptCache | None], lengths: Sequence[int], width: int, room: int) -> PromptCache:
    """One cache with the first lengths[i] positions of caches[i] (of one row each) as row i, at the right of `width`
    columns; what is left of them is zero, for the attention mask to hide.
    """
    some = next(cache for cache in caches if cache is not None)
    layers = []
    for index, layer in enumerate(some.layers):
        parts = []
        for name in ("keys", "values"):
            like = getattr(layer, name)
            buffer = like.new_zeros(len(caches), like.shape[1], width, like.shape[-1])
            for row, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
                if cache is not None and length:
                    buffer[row, :, width - length :] = getattr(cache.layers[index], name)[0, :, :length]
            parts.append(buffer)
        layers.append(parts)
    return _filled(room, layers)


def _filled(room: int, layers: Sequence[Sequence[torch.Tensor]]) -> PromptCache:
    cache = PromptCache(room)
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache
