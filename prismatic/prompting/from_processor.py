"""The ChatTemplate of a native VLM: its own chat format, with what that writes around an image or a video."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prismatic.prompting.from_tokenizer import render_chat, tokenizer_template
from prismatic.prompting.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT = "MARKtextMARK"


def processor_template(tokenizer: PreTrainedTokenizerBase, image_token: str) -> ChatTemplate:
    """The chat format in `tokenizer.chat_template`, with the `medium` that it writes for an image.

    image_token: the model's placeholder of an image. A video is written in the same way, around its own placeholder.
    Raises ValueError when there is no chat template, or one that cannot be taken apart.
    """
    in_parts = _takes_parts(tokenizer)
    template = tokenizer_template(tokenizer, in_parts=in_parts)
    if not in_parts:  # it cannot render an image: the placeholder stands in the text, as in its publisher's examples
        return replace(template, medium="{slots}\n")
    none, one, two = (_opening(tokenizer, images) for images in range(3))
    if image_token not in one:
        raise ValueError("the chat template writes nothing for an image; name another with --model.prompt_template")
    until = one.index(image_token)
    shared = 0
    while shared < min(until, len(none)) and one[shared] == none[shared]:
        shared += 1
    before_text = none[shared:]
    medium = one[shared:].removesuffix(before_text)
    if one[:shared] + 2 * medium + before_text != two:
        raise ValueError(
            "the chat template writes several images in another way than one; name another with --model.prompt_template"
        )
    return replace(template, medium=medium.replace(image_token, "{slots}"), before_text=before_text)


def _takes_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template renders messages that are lists of texts and images."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return False
    try:
        text = _render(tokenizer, 0)
    except (TemplateError, TypeError):  # a template that adds strings cannot add a list
        return False
    return text.count(_TEXT) == 1 and "'text'" not in text


def _render(tokenizer: PreTrainedTokenizerBase, images: int) -> str:
    parts: list[Any] = [{"type": "image"}] * images + [{"type": "text", "text": _TEXT}]
    return render_chat(tokenizer, [("user", parts)], ask=True)


def _opening(tokenizer: PreTrainedTokenizerBase, images: int) -> str:
    return _render(tokenizer, images).partition(_TEXT)[0]
