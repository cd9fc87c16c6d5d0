"""Chat formats with media: the ids are those that the tokenizer gives the publisher's own prompt string."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prismatic.prompting import TEMPLATES, PromptBuilder, processor_template, tokenize_prompt
from prismatic.types import VISUAL_SLOT
from tests.tokenizer_kinds import make

LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501
NOTHING = LLAVA.replace("{{ '<image>\n' }}", "")


def _tokenizer(kind: str, chat: str):
    tokenizer = make(kind)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.chat_template = chat
    return tokenizer


@pytest.mark.parametrize("kind", ["llama2", "llama2-legacy", "llama3", "qwen2"])
@pytest.mark.parametrize("images", [1, 2])
def test_ids_equal_the_publishers(kind: str, images: int) -> None:
    tokenizer = _tokenizer(kind, LLAVA)
    template = processor_template(tokenizer, "<image>")
    assert (template.medium, template.before_text) == ("{slots}\n", "")
    bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    template = replace(template, adds_bos=bos, slot_token="<image>")
    builder = PromptBuilder(template, keep_placeholders=True)
    builder.add_turn("human", "What is happening here?")
    ours = tokenize_prompt(builder.get_prompt(), [3] * images, tokenizer=tokenizer, layout="inline")
    theirs = tokenizer("USER: " + "<image><image><image>\n" * images + "What is happening here? ASSISTANT:")
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert [image if token == VISUAL_SLOT else token for token in ours] == theirs["input_ids"]


def test_a_format_of_strings_keeps_the_placeholder_in_the_text() -> None:
    template = processor_template(_tokenizer("qwen2", PLAIN), "<image>")
    assert template.medium == "{slots}\n"
    assert template.human("<video> What?", first=True) == "user: <video>\nWhat?" + template.end + "assistant: "


def test_a_format_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="writes nothing for an image"):
        processor_template(_tokenizer("qwen2", NOTHING), "<image>")
    tokenizer = _tokenizer("qwen2", LLAVA)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        processor_template(tokenizer, "<image>")


def test_templates_without_a_medium_leave_messages_alone() -> None:
    message = "<image>\n  What is <video> for?"
    assert message in TEMPLATES.get("vicuna-v15").human(message, first=True)
