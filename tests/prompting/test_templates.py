"""The exact strings that checkpoints were trained on, and what goes into them."""

from __future__ import annotations

import pickle

import pytest

from prismatic.prompting import TEMPLATES, ChatTemplate, PromptBuilder
from prismatic.types import Turn

VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
EXACT = {
    "pure": ("In: Q\nOut: ", "A</s>", "In: R\nOut: "),
    "vicuna-v15": (f"{VICUNA} USER: Q ASSISTANT: ", "A</s>", "USER: R ASSISTANT: "),
    "llama2-chat": (f"[INST] <<SYS>>\n{VISION}\n<</SYS>>\n\nQ [/INST] ", "A</s>", "[INST] R [/INST] "),
    "llama2-chat-compat": (f"[INST] <<SYS>\n{VISION}\n<</SYS>>\n\nQ [/INST] ", "A</s>", "[INST] R [/INST] "),
    "mistral-instruct": ("[INST] Q [/INST] ", "A</s>", "[INST] R [/INST] "),
    "phi-2": ("<|endoftext|>Input: Q\nOutput: ", "A\n<|endoftext|>", "<|endoftext|>Input: R\nOutput: "),
    "phi-3-compat": ("<|endoftext|>Input: Q\nOutput: ", "A\n<|endoftext|>", "<|endoftext|>Input: R\nOutput: "),
    "phi-3": (
        "<|user|>\nQ<|end|>\n<|assistant|>\n",
        "A<|end|>",
        "\n<|user|>\nR<|end|>\n<|assistant|>\n",
    ),
    "llama3-instruct-compat": (
        f"<|start_header_id|>system<|end_header_id|>\n{VISION}\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\nQ<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\nA<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\nR<|eot_id|>",
    ),
    "llama3-instruct": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{VISION}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "A<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma-instruct": (
        "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n",
        "A<end_of_turn>",
        "\n<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n",
    ),
    "qwen-2": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "A<|im_end|>",
        "\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
    ),
}


def _chat(template_id: str) -> tuple[PromptBuilder, tuple[str, ...]]:
    builder = PromptBuilder(TEMPLATES.get(template_id))
    said = (("human", "<image>\nQ "), ("gpt", "A"), ("human", "R<video>"))
    return builder, tuple(builder.add_turn(role, message) for role, message in said)


@pytest.mark.parametrize("template_id", EXACT)
def test_strings_are_exact(template_id: str) -> None:
    assert _chat(template_id)[1] == EXACT[template_id]


def test_every_template_is_pinned_here() -> None:
    assert set(TEMPLATES.names()) - set(EXACT) == {"video-chatgpt-v1", "caption"}


def test_video_chatgpt_has_its_own_system_prompt() -> None:
    text = PromptBuilder(TEMPLATES.get("video-chatgpt-v1")).add_turn("human", "Q")
    assert text.startswith("You are Video-ChatGPT, a large") and "natural language.Follow" in text
    assert text.endswith("provided video. USER: Q ASSISTANT: ")


def test_prompt_loses_begin_token_and_blanks_behind_as_before() -> None:
    builder, _ = _chat("phi-2")
    assert builder.get_prompt() == "Input: Q\nOutput: A\n<|endoftext|><|endoftext|>Input: R\nOutput:"
    assert _chat("llama2-chat")[0].get_prompt().endswith("A</s>[INST] R [/INST]")
    assert _chat("llama3-instruct-compat")[0].get_prompt().endswith("R<|eot_id|>")
    # The line break behind a real header belongs to the prompt.
    assert _chat("qwen-2")[0].get_prompt().endswith("<|im_start|>assistant\n")


def test_potential_prompt_does_not_change_the_conversation() -> None:
    builder = PromptBuilder(TEMPLATES.get("pure"))
    assert builder.get_potential_prompt("Q") == "In: Q\nOut:"
    assert builder.get_prompt() == ""
    builder.add_turn("human", "Q")
    builder.add_turn("gpt", "")
    assert builder.get_prompt() == "In: Q\nOut:  </s>"  # an empty answer is one blank
    assert builder.get_potential_prompt("R") == "In: Q\nOut:  </s>In: R\nOut:"


@pytest.mark.parametrize("roles", [("gpt",), ("human", "human"), ("human", "gpt", "gpt"), ("user",)])
def test_turns_alternate(roles: tuple[str, ...]) -> None:
    builder = PromptBuilder(TEMPLATES.get("pure"))
    with pytest.raises(ValueError, match="must be from"):
        for role in roles:
            builder.add_turn(role, "x")


def test_system_prompt_replaces_default_or_is_refused() -> None:
    def first(name: str, system: str | None) -> str:
        return PromptBuilder(TEMPLATES.get(name), system).add_turn("human", "Q")

    assert first("vicuna-v15", "Be brief.") == "Be brief. USER: Q ASSISTANT: "
    assert first("vicuna-v15", "") == "USER: Q ASSISTANT: "
    assert first("phi-3", "S").startswith("<|system|>\nS<|end|>\n<|user|>\nQ<|end|>")
    assert first("gemma-instruct", "S").startswith("<start_of_turn>user\nS\n\nQ<end_of_turn>")
    with pytest.raises(ValueError, match=r"no place for a system prompt.*--model\.prompt_template"):
        PromptBuilder(TEMPLATES.get("pure"), "Be brief.")


def test_braces_and_fields_in_messages_are_text() -> None:
    text = PromptBuilder(TEMPLATES.get("vicuna-v15"), "s {message}").add_turn("human", "{system} {message} {} {0}")
    # A field in the system prompt is the one odd case: the message takes the first place.
    assert "{system} {message} {} {0}" in text


def test_placeholders_stay_when_asked() -> None:
    builder = PromptBuilder(TEMPLATES.get("pure"), keep_placeholders=True)
    assert builder.add_turn("human", "<video>\nQ") == "In: <video>\nQ\nOut: "


def test_prompt_keeps_its_conversation_through_pickle_and_is_plain_after_an_edit() -> None:
    prompt = pickle.loads(pickle.dumps(_chat("pure")[0].get_prompt()))
    assert prompt.conversation.turns[1] == Turn("gpt", "A")
    assert not hasattr(prompt + "", "conversation") and isinstance(prompt, str)


def test_caption_template_drops_the_question() -> None:
    template = ChatTemplate(first="", end="</s>")
    assert [s.text for s in template.segments([Turn("human", "Q"), Turn("gpt", "A cat.")])] == ["", "A cat.</s>"]
