"""A conversation and the sizes of its media into input ids and labels, cut to the longest text that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prismatic.prompting import ChatTemplate, place_turns, tokenize_segments
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ZeroLabelsError(ValueError):
    """Nothing of a conversation is left to learn."""


@dataclass(frozen=True)
class Tokenized:
    """One example: lists of the same length S. cut: text tokens that `max_length` cost it."""

    input_ids: list[int]
    labels: list[int]
    cut: int = 0


def tokenize_chat(
    turns: Sequence[Turn],
    media_tokens: Sequence[int],
    *,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    layout: str,
    max_length: int,
    system_prompt: str | None = None,
) -> Tokenized:
    """Ids and labels of a conversation about media with `media_tokens` visual tokens each.

    input_ids holds VISUAL_SLOT at the places of visual embeddings, sum(media_tokens) of them. labels equal the ids of
    the answers and their ends, IGNORE_INDEX elsewhere and at the first position; decoding those of one turn gives the
    answer's text and its end, for every tokenizer. max_length bounds the text tokens only: the end of a longer text is
    cut off, visual tokens never are.

    Raises ZeroLabelsError when no label is left, ValueError for more placeholders than media or turns out of order.
    """
    placed = place_turns(turns, len(media_tokens), layout)
    ids, labels = tokenize_segments(
        template.segments(placed, system_prompt),
        media_tokens,
        tokenizer=tokenizer,
        layout=layout,
        adds_bos=template.adds_bos,
    )
    num_text = len(ids) - sum(media_tokens)
    cut = max(0, num_text - max_length)
    if cut:
        ids, labels = _cut_text(ids, labels, max_length)
    if all(label == IGNORE_INDEX for label in labels):
        raise ZeroLabelsError(_nothing_left(turns, num_text, max_length))
    return Tokenized(ids, labels, cut)


def _cut_text(ids: list[int], labels: list[int], max_length: int) -> tuple[list[int], list[int]]:
    kept, text = [], 0
    for position, token in enumerate(ids):
        text += token != VISUAL_SLOT
        if token == VISUAL_SLOT or text <= max_length:
            kept.append(position)
    return [ids[p] for p in kept], [labels[p] for p in kept]


def _nothing_left(turns: Sequence[Turn], num_text: int, max_length: int) -> str:
    if not any(turn.role == "gpt" for turn in turns):
        return "the conversation has no answer to learn"
    if num_text <= max_length:
        return "the answers hold no token to learn"
    return (
        f"no label token is left: the text has {num_text} tokens and its first answer begins behind the "
        f"{max_length} that are kept; raise --model.llm_max_length or shorten the question"
    )
