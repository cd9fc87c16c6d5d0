"""Tokens of exported chat templates against those of the model, for every kind of tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from prismatic.export.chat_template import messages
from prismatic.export.errors import ExportError
from prismatic.export.tokens import export_tokenizer, prompt_ids
from prismatic.prompting import TEMPLATES, PromptBuilder, tokenize_prompt
from prismatic.types import VISUAL_SLOT, Turn
from tests.tokenizer_kinds import KINDS, make

# The formats that the published families of each kind are trained with.
OWN = {
    "llama2-legacy": ("pure", "vicuna-v15", "llama2-chat", "llama2-chat-compat", "mistral-instruct"),
    "llama2": ("pure", "vicuna-v15", "llama2-chat", "mistral-instruct"),
    "gemma": ("pure", "gemma-instruct"),
    "llama3": ("pure", "llama3-instruct", "llama3-instruct-compat"),
    "gpt2": ("pure", "phi-2"),
    "qwen2": ("qwen-2", "pure"),
    "phi3": ("phi-3", "phi-3-compat"),
}
CASES = [(kind, template, layout) for kind in KINDS for template in OWN[kind] for layout in ("after-bos", "inline")]


def _vlm(kind: str, template: str, layout: str = "after-bos") -> SimpleNamespace:
    tokenizer = make(kind)
    llm = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(len(tokenizer), 4))
    backbone = SimpleNamespace(tokenizer=tokenizer, context_length=64, llm=llm)
    return SimpleNamespace(
        template=TEMPLATES.get(template).for_tokenizer(tokenizer), layout=layout, llm_backbone=backbone
    )


def _render(exported, said: list, **more) -> list[int]:
    text = exported.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **more)
    assert exported.tokenizer(text)["input_ids"] == exported.tokenizer(text, add_special_tokens=False)["input_ids"]
    return exported.tokenizer(text)["input_ids"]


@pytest.mark.parametrize(("kind", "template", "layout"), CASES)
def test_the_same_tokens(kind: str, template: str, layout: str) -> None:
    vlm = _vlm(kind, template, layout)
    exported = export_tokenizer(vlm)
    chat = [Turn("human", "Is it red?"), Turn("gpt", "No, blue."), Turn("human", "Sure?\nReally? \u00e9")]
    for turns in (chat[:1], chat) if exported.whole_chats else (chat[:1],):
        for images in (0, 1, 4):
            assert _render(exported, messages(turns, images)) == prompt_ids(vlm, turns, images, exported.image_id)


def test_system_prompts_and_strings() -> None:
    vlm = _vlm("llama3", "llama3-instruct")
    exported = export_tokenizer(vlm)
    builder = PromptBuilder(vlm.template, "Be brief.")
    builder.add_turn("human", "What?")
    expected = tokenize_prompt(builder.get_prompt(), [2], tokenizer=make("llama3"), layout="after-bos")
    expected = [exported.image_id if token == VISUAL_SLOT else token for token in expected]
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image><image>\nWhat?"}]
    assert _render(exported, said) == expected


def test_media_within_a_message_stay_in_their_place() -> None:
    vlm = _vlm("qwen2", "qwen-2", "inline")
    exported = export_tokenizer(vlm)
    builder = PromptBuilder(vlm.template, keep_placeholders=True)
    builder.add_turn("human", "Before <video> and after <video>?")
    expected = tokenize_prompt(
        builder.get_prompt(), [2, 1], tokenizer=make("qwen2"), layout="inline", template=vlm.template
    )
    image, text = {"type": "image"}, lambda string: {"type": "text", "text": string}
    content = [text("Before "), image, image, text(" and after "), image, text("?")]
    found = _render(exported, [{"role": "user", "content": content}])
    assert found == [exported.image_id if token == VISUAL_SLOT else token for token in expected]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([{"role": "assistant", "content": "a"}], "roles must alternate"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "must come first"),
        ([{"role": "user", "content": [{"type": "video"}]}], "one image item each"),
        ([{"role": "system", "content": "b"}, {"role": "user", "content": "a"}], "no place for a system prompt"),
    ],
)
def test_conversations_that_cannot_be(said: list, reason: str) -> None:
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match=reason):
        _render(export_tokenizer(_vlm("gpt2", "phi-2")), said)


def test_a_place_in_the_vocabulary() -> None:
    vlm = _vlm("gemma", "gemma-instruct")
    size = len(make("gemma"))
    exported = export_tokenizer(vlm)
    assert exported.image_id == size and exported.rows % 64 == 0 and exported.rows > size
    vlm.llm_backbone.llm.get_input_embeddings = lambda: torch.nn.Embedding(size + 1, 4)
    assert export_tokenizer(vlm).rows == size + 1
    assert len(make("gemma")) == size, "the model's own tokenizer was changed"


def test_a_split_that_differs_is_refused() -> None:
    with pytest.raises(ExportError, match="splits a text"):
        export_tokenizer(_vlm("llama2-legacy", "llama3-instruct-compat"))
