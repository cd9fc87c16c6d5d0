"""A ChatTemplate out of a tokenizer's own `chat_template`, for LLMs that have no row.

The template is rendered with marks in the place of messages, and cut at the marks. What comes out is a plain row of
strings, so training and asking go the same way as for every other template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from prismatic.prompting.templates import ChatTemplate
from prismatic.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER, _NEXT, _SYSTEM = "MARKquestionMARK", "MARKanswerMARK", "MARKnextMARK", "MARKsystemMARK"
# Some templates write the day's date into the prompt; a model must not see other prompts tomorrow than today.
_FIXED = {"date_string": "26 Jul 2024"}


def tokenizer_template(tokenizer: PreTrainedTokenizerBase, in_parts: bool = False) -> ChatTemplate:
    """The chat format that the tokenizer's publisher wrote, as a ChatTemplate.

    in_parts: messages are handed to it as lists of parts, as the formats of VLMs want them.

    Raises ValueError when the tokenizer has no chat template, or one that does not put messages one after another
    (then a template has to be named by its id).
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template of its own; name one with --model.prompt_template")
    render = partial(_render, tokenizer, in_parts)
    first = render([("user", _QUESTION)], ask=True)
    whole = render([("user", _QUESTION), ("assistant", _ANSWER), ("user", _NEXT)], ask=True)
    closed = render([("user", _QUESTION), ("assistant", _ANSWER)], ask=False)
    header = whole.partition(_ANSWER)[0]
    if in_parts and header.replace(" ", "") == first.replace(" ", ""):
        # LLaVA-OneVision asks with another blank behind the role than it writes answers with; what asks counts.
        whole = first + whole.removeprefix(header)
    # Some formats put a blank in front of the answer that the prompt does not hold.
    gap = whole[len(first) :].partition(_ANSWER)[0]
    if not whole.startswith(first) or gap.strip() or any(text.count(_ANSWER) != 1 for text in (whole, closed)):
        raise ValueError(
            "the tokenizer's chat template does not put an answer right after the prompt that asked for it; "
            "name another with --model.prompt_template"
        )
    between = whole[len(first + gap + _ANSWER) :]
    end = _end(tokenizer, closed.partition(_ANSWER)[2])
    known = between.startswith(end)
    bos = tokenizer.bos_token or ""
    begins = bool(bos) and first.startswith(bos)
    system = _system_form(render)
    template = ChatTemplate(
        first=first.removeprefix(bos).replace(_QUESTION, "{message}") + gap,
        later=between.removeprefix(end).replace(_NEXT, "{message}") + gap,
        with_system=system and system.removeprefix(bos) + gap,
        end=end,
        bos=bos,
        adds_bos=begins,
        strips=bool(gap),
        joined=known and not gap,
        stop=tuple(filter(None, {end.strip(): None, tokenizer.eos_token: None})),
    )
    turns = [Turn("human", _QUESTION), Turn("gpt", _ANSWER), Turn("human", _NEXT)]
    ours = "".join(
        template.human(t.text, first=not i) if i != 1 else template.answer(t.text) for i, t in enumerate(turns)
    )
    if known and ours != whole.removeprefix(bos) + gap:
        raise ValueError("the tokenizer's chat template cannot be taken apart; name one with --model.prompt_template")
    return template


def _render(tokenizer: PreTrainedTokenizerBase, in_parts: bool, said: list[tuple[str, str]], ask: bool) -> str:
    if not in_parts:
        return render_chat(tokenizer, said, ask)
    return render_chat(tokenizer, [(role, [{"type": "text", "text": text}]) for role, text in said], ask)


def render_chat(tokenizer: PreTrainedTokenizerBase, said: Sequence[tuple[str, Any]], ask: bool) -> str:
    """The string that the tokenizer's chat template makes of (role, content) messages. ask: ready to be answered."""
    messages = [{"role": role, "content": content} for role, content in said]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **_FIXED)
    assert isinstance(text, str)
    return text


def _system_form(render: Callable[..., str]) -> str | None:
    """The first human turn with `{system}` and `{message}`; None when the format has no place for a system prompt."""
    from jinja2 import TemplateError

    try:
        text = render([("system", _SYSTEM), ("user", _QUESTION)], ask=True)
    except TemplateError:  # "System role not supported": raise_exception() of the template itself
        return None
    if text.count(_SYSTEM) != 1 or text.index(_SYSTEM) > text.index(_QUESTION):
        return None
    return text.replace(_SYSTEM, "{system}").replace(_QUESTION, "{message}")


def _end(tokenizer: PreTrainedTokenizerBase, tail: str) -> str:
    """What closes an answer: the text behind it up to its first special token, else the end token."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    found = [(tail.index(token), -len(token)) for token in special if token in tail]
    if found:
        start, length = min(found)
        return tail[: start - length]
    if not tokenizer.eos_token:
        raise ValueError("the tokenizer has no end token; name a template with --model.prompt_template")
    return tokenizer.eos_token
