"""How likely given answers are: of several prompts at once, each with answers of its own.

The prompts are one batch, padded on the left as in generation.py; what their beginnings share, or what is remembered of
them, is not computed again. Answers of more than one token then continue the keys and values of their prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from prismatic.models.generation import check_context, evaluating, pad_left, prompt_rows
from prismatic.models.prefix import Prefix, PromptRow

if TYPE_CHECKING:
    from prismatic.models.kv_cache import PromptCache
    from prismatic.models.vlm import PrismaticVLM


@torch.no_grad()
def score(
    vlm: PrismaticVLM, clips: Sequence[Any], prompts: Sequence[str], choices: Sequence[Sequence[str]], per_token: bool
) -> list[list[float]]:
    """Normalised likelihoods of the choices of each prompt. See PrismaticVLM.score_choices_batch."""
    if not len(clips) == len(prompts) == len(choices):
        raise ValueError(
            f"got {len(clips)} clips and {len(choices)} lists of answers for {len(prompts)} prompts; each prompt needs "
            "its own"
        )
    if not prompts:
        return []
    answers = [_choice_ids(vlm, own) for own in choices]
    with evaluating(vlm):
        rows = prompt_rows(vlm, clips, prompts)
        for row, own in zip(rows, answers, strict=True):
            check_context(vlm, len(row.embeds), max(map(len, own)))
        logits = (_logits_after if vlm.llm_backbone.separates else _logits_repeated)(vlm, rows, answers)
        return [_likelihoods(*pair, per_token) for pair in zip(logits, answers, strict=True)]


def _choice_ids(vlm: PrismaticVLM, choices: Sequence[str]) -> list[list[int]]:
    tokenizer = vlm.llm_backbone.tokenizer
    if isinstance(choices, str) or not choices:
        raise ValueError(f"score_choices needs a list of answers, got {choices!r}")
    rows = [list(tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in choices]
    for choice, row in zip(choices, rows, strict=True):
        if not row:
            raise ValueError(f"choice {choice!r} has no tokens")
    if any(a is not b and len(a) < len(b) and b[: len(a)] == a for a in rows for b in rows):
        end = tokenizer(vlm.template.end, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        rows = [[*row, *end] for row in rows]
    return rows


def _likelihoods(logits: torch.Tensor, answers: Sequence[Sequence[int]], per_token: bool) -> list[float]:
    """Logits [C, L, V] at the tokens of C answers to their likelihoods, made to sum to 1."""
    ids, lengths = _padded(answers).to(logits.device), torch.tensor([len(answer) for answer in answers])
    tokens = logits.float().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0].cpu()
    real = torch.arange(ids.shape[1])[None] < lengths[:, None]
    likely = (tokens * real).sum(dim=1, dtype=torch.float64)
    return (likely / lengths if per_token else likely).softmax(dim=0).tolist()


def _padded(answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """Answers to ids int64 [C, L]. Padding stands behind a row's real tokens, where causal attention never looks."""
    ids = torch.zeros(len(answers), max(map(len, answers)), dtype=torch.long)
    for i, answer in enumerate(answers):
        ids[i, : len(answer)] = torch.tensor(answer)
    return ids


def _logits_after(
    vlm: PrismaticVLM, rows: Sequence[PromptRow], answers: Sequence[Sequence[Sequence[int]]]
) -> list[torch.Tensor]:
    """Logits [C, L, V] after each prompt and after all but the last token of each of its C answers."""
    cache, first = _after_prompts(vlm, rows)
    found = []
    # One prompt after the other: its keys and values are held once for each of its answers.
    for index, (row, own) in enumerate(zip(rows, answers, strict=True)):
        ids = _padded(own)[:, :-1].to(vlm.device)
        (C, L), S = ids.shape, len(row.embeds)
        logits = first[index].expand(C, 1, -1)
        if L:
            repeated = cache.row(index, S, room=S + L, repeats=C)
            # Text goes on behind the last token of the prompt, which is text: alike in time, height and width.
            start = S if row.positions is None else int(row.positions[0, -1]) + 1
            at = torch.arange(start, start + L, device=vlm.device).expand(C, -1)
            llm = vlm.llm_backbone.llm
            rest = llm(input_ids=ids, position_ids=at, past_key_values=repeated, use_cache=True).logits
            logits = torch.cat([logits, rest], dim=1)
        found.append(logits)
    return found


def _after_prompts(vlm: PrismaticVLM, rows: Sequence[PromptRow]) -> tuple[PromptCache, torch.Tensor]:
    """Keys and values of prompts, each at the right of a row, and the logits [B, 1, V] after their last tokens."""
    prefix = Prefix(vlm, rows, {"max_new_tokens": 0, "num_beams": 1})
    assert prefix.cache is not None
    embeds, mask, positions = pad_left(rows)
    start = prefix.cache.get_seq_length()
    if positions is None:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = vlm.llm_backbone.llm(
        inputs_embeds=embeds[:, start:],
        attention_mask=mask,
        position_ids=positions[..., start:],
        past_key_values=prefix.cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    prefix.keep(mask.new_zeros(1, 0))
    return prefix.cache, logits


def _logits_repeated(
    vlm: PrismaticVLM, rows: Sequence[PromptRow], answers: Sequence[Sequence[Sequence[int]]]
) -> list[torch.Tensor]:
    """The same for families whose cache is of another kind: the prompt is computed with each answer."""
    found = []
    for row, own in zip(rows, answers, strict=True):
        assert row.positions is None, "every family with positions in space has the standard cache"
        ids = _padded(own)[:, :-1].to(vlm.device)
        whole = torch.cat([row.embeds.expand(len(ids), -1, -1), vlm.llm_backbone.embed(ids)], dim=1)
        found.append(vlm.llm_backbone.llm(inputs_embeds=whole, use_cache=False).logits[:, len(row.embeds) - 1 :])
    return found
