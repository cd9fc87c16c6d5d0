"""Asking: batched generation with visual tokens.

Token by token work is left to the LLM's own `generate`; here are the prompt's embeddings, padding on the left, the ends
of answers, and the check against the context length. What is known of a prompt's beginning is prefix.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from prismatic.models.memory import identity
from prismatic.models.prefix import Prefix, PromptRow
from prismatic.prompting import tokenize_prompt

if TYPE_CHECKING:
    from transformers import StoppingCriteriaList

    from prismatic.models.vlm import PrismaticVLM

DEFAULT_NEW_TOKENS = 256
UNSUPPORTED = ("inputs_embeds", "input_ids", "attention_mask", "return_dict_in_generate", "num_return_sequences")


@torch.no_grad()
def generate_texts(vlm: PrismaticVLM, clips: Sequence[Any], prompts: Sequence[str], **kwargs: Any) -> list[str]:
    """One answer a prompt. See PrismaticVLM.generate and generate_batch."""
    if len(clips) != len(prompts):
        raise ValueError(f"got {len(clips)} clips for {len(prompts)} prompts; each prompt needs its own (or None)")
    refused = [name for name in UNSUPPORTED if name in kwargs]
    if refused:
        raise ValueError(f"generate() makes {', '.join(refused)} itself and returns one text a prompt; leave it out")
    if not prompts:
        return []
    tokenizer = vlm.llm_backbone.tokenizer
    with evaluating(vlm):
        rows = prompt_rows(vlm, clips, prompts)
        kwargs["max_new_tokens"] = _room(vlm, max(len(row.embeds) for row in rows), kwargs)
        prefix = Prefix(vlm, rows, kwargs)
        embeds, mask, positions = pad_left(rows)
        if positions is not None:
            kwargs["position_ids"] = positions
        ends = end_tokens(vlm, kwargs.pop("eos_token_id", None))
        if not kwargs.setdefault("do_sample", False):
            # Sampling values of the publisher's generation_config would only raise warnings.
            kwargs = {"temperature": None, "top_p": None, "top_k": None, **kwargs}
        if "stop_strings" in kwargs:
            kwargs.setdefault("tokenizer", tokenizer)
        stops = stop_texts(vlm)
        if stops:
            kwargs["stopping_criteria"] = _criteria(tokenizer, stops, kwargs.get("stopping_criteria"))
        ids = vlm.llm_backbone.llm.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            use_cache=kwargs.pop("use_cache", True),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends or None,
            **prefix.given(),
            **kwargs,
        )
        prefix.keep(ids)
    return [_text(row, tokenizer, ends, stops) for row in ids.tolist()]


@contextmanager
def evaluating(vlm: PrismaticVLM) -> Iterator[None]:
    """No dropout inside (and no activation checkpointing, which would switch the KV cache off)."""
    training = [module for module in vlm.modules() if module.training]
    if training:
        vlm.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        if training:
            vlm.memory.forget()


def prompt_embeddings(vlm: PrismaticVLM, clips: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
    """Embeddings [S, D] of each prompt with its visual tokens."""
    return [row.embeds for row in prompt_rows(vlm, clips, prompts)]


def prompt_rows(vlm: PrismaticVLM, clips: Sequence[Any], prompts: Sequence[str]) -> list[PromptRow]:
    """Each prompt with its visual tokens; the frames of a prompt go through the vision backbone together."""
    vlm.memory.refresh(vlm, vlm.device)
    encoded = [vlm.encode_new(frames) for frames in clips]
    rows = []
    for media, prompt in zip(encoded, prompts, strict=True):
        media_tokens = [len(clip.tokens) for clip in media]
        ids = _prompt_ids(vlm, prompt, media_tokens)
        ids_t = torch.tensor([ids], device=vlm.device)
        width = vlm.llm_backbone.embed_dim
        visual = torch.cat([clip.tokens for clip in media]) if media else torch.zeros(0, width, device=vlm.device)
        embeds, positions = vlm.splice(ids_t, visual)[0], vlm.prompt_positions(ids_t[0], media_tokens)
        rows.append(PromptRow(embeds, positions, identity(ids, media)))
    return rows


def _prompt_ids(vlm: PrismaticVLM, prompt: str, media_tokens: Sequence[int]) -> list[int]:
    tokenizer = vlm.llm_backbone.tokenizer
    prompt = vlm.place_media(prompt, len(media_tokens))
    ids = tokenize_prompt(prompt, media_tokens, tokenizer=tokenizer, layout=vlm.layout, template=vlm.template)
    # A format that has the model write a header before each answer: it is given, not asked for.
    return ids + tokenizer(vlm.template.head, add_special_tokens=False)["input_ids"] if vlm.template.head else ids


def pad_left(rows: Sequence[PromptRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows to embeddings [B, S, D] and attention mask int64 [B, S]; answers then start in one column.

    The third are positions int64 [4, B, S] (of the text, then of time, height and width), where rows have them.
    """
    S, first = max(len(row.embeds) for row in rows), rows[0].embeds
    embeds = first.new_zeros(len(rows), S, first.shape[-1])
    mask = torch.zeros(len(rows), S, dtype=torch.long, device=first.device)
    positions = torch.zeros(4, len(rows), S, dtype=torch.long, device=first.device)
    for i, row in enumerate(rows):
        length = len(row.embeds)
        embeds[i, S - length :] = row.embeds
        mask[i, S - length :] = 1
        if row.positions is not None:
            positions[0, i, S - length :] = torch.arange(length, device=first.device)
            positions[1:, i, S - length :] = row.positions
    return embeds, mask, None if rows[0].positions is None else positions


def _room(vlm: PrismaticVLM, length: int, kwargs: dict[str, Any]) -> int:
    """Tokens that may be generated: as asked for, or as many as fit up to a default."""
    asked = kwargs.pop("max_new_tokens", None)
    asked = kwargs.pop("max_length", None) if asked is None else asked  # of new tokens too: the prompt is embeddings
    if asked is not None:
        check_context(vlm, length, asked)
        return asked
    check_context(vlm, length, 1)
    return max(min(DEFAULT_NEW_TOKENS, vlm.llm_backbone.context_length - length), kwargs.get("min_new_tokens") or 1)


def check_context(vlm: PrismaticVLM, length: int, new: int) -> None:
    """Raises ValueError when a prompt of `length` tokens and `new` more are longer than the LLM's context."""
    context = vlm.llm_backbone.context_length
    if length + new > context:
        raise ValueError(
            f"a prompt of {length} tokens (visual ones counted) and {new} more for the answer exceed the LLM's context "
            f"of {context}; lower max_new_tokens or num_frames, shorten the prompt, or train with "
            "--model.frame_aggregator mean or --model.rope_scaling_factor"
        )


def end_tokens(vlm: PrismaticVLM, asked: int | Sequence[int] | None) -> list[int]:
    """Tokens that end an answer: the caller's, or the tokenizer's, the publisher's and the template's."""
    if asked is not None:
        return [asked] if isinstance(asked, int) else list(asked)
    tokenizer, config = vlm.llm_backbone.tokenizer, vlm.llm_backbone.llm.generation_config
    published = getattr(config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(published if isinstance(published, list) else [published])]
    for text in vlm.template.stop:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends += ids if len(ids) == 1 else []
    return sorted({end for end in ends if end is not None})


def stop_texts(vlm: PrismaticVLM) -> list[str]:
    """Strings of the template that end an answer and are more than one token."""
    tokenizer = vlm.llm_backbone.tokenizer
    return [text for text in vlm.template.stop if len(tokenizer(text, add_special_tokens=False)["input_ids"]) > 1]


def _criteria(tokenizer: Any, stops: Sequence[str], others: Any) -> StoppingCriteriaList:
    from transformers import StoppingCriteria, StoppingCriteriaList

    class StopAtText(StoppingCriteria):
        """True for rows whose new text holds a stop string. Only new tokens arrive here: the prompt is embeddings."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            tail = max(map(len, stops)) + 8  # each token has at least a character, or is part of one
            texts = tokenizer.batch_decode(input_ids[:, -tail:], skip_special_tokens=False)
            done = [any(stop in text for stop in stops) for text in texts]
            return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([StopAtText(), *(others or [])])


def _text(ids: list[int], tokenizer: Any, ends: Sequence[int], stops: Sequence[str]) -> str:
    """The answer in new token ids: up to the first end, without special tokens and blanks around it."""
    first = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:first], skip_special_tokens=True)
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()
