"""Text and the slots of visual tokens into one sequence of ids; the same for training, prompts, and every tokenizer.

Layouts: `after-bos` puts the slots of all media after the first token of the sequence; `inline` puts those of each
medium in the place of its `<image>` or `<video>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prismatic.prompting.builder import Conversation, Prompt
from prismatic.prompting.templates import PLACEHOLDERS, ChatTemplate, Segment, strip_placeholders
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS)))
# In a row without media, `<video>` in the middle of a message is text (about HTML, say); at an end it is a lost medium.
_AT_AN_END = re.compile(rf"\A\s*(?:{_PLACEHOLDER.pattern})|(?:{_PLACEHOLDER.pattern})\s*\Z")


def find_placeholders(texts: Sequence[str], num_media: int) -> list[str]:
    """The placeholders of human messages, in order. Without media, only those at the beginning or end of a message."""
    pattern = _PLACEHOLDER if num_media else _AT_AN_END
    return [match.strip() for text in texts for match in pattern.findall(text)]


def check_placeholders(texts: Sequence[str], num_media: int) -> int:
    """Number of media that have no placeholder in the human messages `texts`.

    Raises ValueError when there are more placeholders than media.
    """
    found = len(find_placeholders(texts, num_media))
    if found > num_media:
        raise ValueError(
            f"{found} <image>/<video> placeholders but {num_media} images or videos; "
            "remove the placeholders that are too many, or name the missing media"
        )
    return num_media - found


def place_turns(turns: Sequence[Turn], num_media: int, layout: str) -> list[Turn]:
    """The turns as `layout` wants them.

    after-bos: human messages without placeholders. inline: with exactly one placeholder a medium; those that are
    missing go to the front of the first human message. Raises ValueError when there are more placeholders than media.
    """
    missing = check_placeholders([turn.text for turn in turns if turn.role == "human"], num_media)
    if layout == "after-bos":
        return [Turn("human", strip_placeholders(t.text)) if t.role == "human" else t for t in turns]
    if layout != "inline":
        raise ValueError(f"--model.visual_token_layout must be after-bos or inline, got '{layout}'")
    if missing and turns:
        first = Turn(turns[0].role, f"{PLACEHOLDERS[0]}\n" * missing + turns[0].text)
        return [first, *turns[1:]]
    return list(turns)


def tokenize_segments(
    segments: Sequence[Segment],
    media_tokens: Sequence[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    layout: str,
    adds_bos: bool = True,
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation, lists of the same length.

    media_tokens: visual tokens N of each medium; a slot is VISUAL_SLOT in the ids. Labels are the ids of learned
    segments and IGNORE_INDEX elsewhere, also at the first position. Media beyond the placeholders go after the first
    token. Raises ValueError when there are more placeholders than media.
    """
    slots = list(media_tokens) if layout == "inline" else []
    if slots:
        check_placeholders([segment.text for segment in segments if not segment.learned], len(slots))
    ids: list[int] = []
    labels: list[int] = []
    for segment in segments:
        for piece in _pieces(segment) if layout == "inline" and media_tokens else [segment]:
            if slots and piece.text in PLACEHOLDERS and not segment.learned:
                new = [VISUAL_SLOT] * slots.pop(0)
            else:
                new = _token_ids(piece, tokenizer)
            ids += new
            labels += new if segment.learned else [IGNORE_INDEX] * len(new)
    bos = tokenizer.bos_token_id
    if adds_bos and bos is not None and ids[:1] != [bos]:
        ids.insert(0, bos)
        labels.insert(0, IGNORE_INDEX)
    early = sum(media_tokens) if layout == "after-bos" else sum(slots)
    at = (
        1 if labels[:1] == [IGNORE_INDEX] else 0
    )  # no begin token and no prompt: a learned token stays behind the media
    ids[at:at] = [VISUAL_SLOT] * early
    labels[at:at] = [IGNORE_INDEX] * early
    labels[:1] = [IGNORE_INDEX] * len(labels[:1])
    return ids, labels


def tokenize_prompt(
    prompt: str,
    media_tokens: Sequence[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    layout: str,
    template: ChatTemplate | None = None,
) -> list[int]:
    """Ids of a prompt, VISUAL_SLOT where visual embeddings go.

    A `Prompt` (what PromptBuilder gives) is tokenized turn by turn as in training. A plain string is one segment; for
    it `template` tells whether the tokenizer's begin token goes first (without one: when the tokenizer has it).
    Raises ValueError when there are more placeholders than media (layout inline).
    """
    if isinstance(prompt, Prompt) and prompt.conversation is not None:
        said: Conversation = prompt.conversation
        if layout == "after-bos":  # placeholders mean nothing here, and the string has lost them already
            turns = [Turn("human", strip_placeholders(t.text)) if t.role == "human" else t for t in said.turns]
        else:
            turns = place_turns(said.turns, len(media_tokens), layout)
        segments = said.template.segments(turns, said.system_prompt)
        adds_bos = said.template.adds_bos
    else:
        if layout == "inline" and not media_tokens and _PLACEHOLDER.search(prompt):
            raise ValueError("the prompt holds an <image> or <video> placeholder but no image or video came with it")
        slot_context = template.slot_token if template else ""
        segments = [Segment(str(prompt), learned=False, slot_context=slot_context)]
        adds_bos = template.adds_bos if template else True
    return tokenize_segments(segments, media_tokens, tokenizer=tokenizer, layout=layout, adds_bos=adds_bos)[0]


def _pieces(segment: Segment) -> list[Segment]:
    """A segment cut at its placeholders, which become pieces of their own."""
    if segment.learned or not _PLACEHOLDER.search(segment.text):
        return [segment]
    texts = re.split(f"({_PLACEHOLDER.pattern})", segment.text)
    # Every second text is a placeholder: what stands behind one is tokenized in the company of the model's own.
    return [
        replace(segment, text=text, context=segment.slot_context if i else segment.context)
        for i, text in enumerate(texts)
        if text
    ]


def _token_ids(segment: Segment, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    if not segment.text:
        return []
    if segment.context:
        context, both = encode(segment.context), encode(segment.context + segment.text)
        if both[: len(context)] == context:
            return both[len(context) :]
    ids = encode(segment.text)
    if segment.learned and segment.text[0] == " ":
        # Some SentencePiece tokenizers take a leading blank for the one that they put in front of every text.
        wider = encode(" " + segment.text)
        for found in (ids, wider):
            if tokenizer.decode(found, clean_up_tokenization_spaces=False) == segment.text:
                return found
    return ids
