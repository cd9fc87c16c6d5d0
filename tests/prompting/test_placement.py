"""Every template with every kind of tokenizer: labels decode to the answers, and asking is tokenized as in training."""

from __future__ import annotations

import pytest

from prismatic.prompting import TEMPLATES, ChatTemplate, PromptBuilder, tokenize_prompt, tokenizer_template
from prismatic.prompting.placement import place_turns, tokenize_segments
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Turn
from tests.tokenizer_kinds import KINDS, make

ANSWERS = (
    "A red circle moves left, then stops.",
    "",
    " ",
    "  two blanks in front",
    "a blank behind ",
    "\nline break in front",
    "caf\u00e9 \u6f22\u5b57 \U0001f600 na\u00efve",
    "tabs\tand\n\nparagraphs\n",
    "word " * 500 + "end",
)
PAIRS = [(name, kind) for name in TEMPLATES.names() for kind in KINDS]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OLD_LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
# Gives the last answer a field of its own that earlier answers lose, as formats with thinking do.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _runs(labels: list[int]) -> list[list[int]]:
    """The stretches of learned tokens."""
    runs: list[list[int]] = []
    for before, label in zip([IGNORE_INDEX, *labels], labels, strict=False):
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
    return runs


def _tokens(template: ChatTemplate, tokenizer, turns, media=(), layout="after-bos"):
    placed = place_turns(turns, len(media), layout)
    return tokenize_segments(
        template.segments(placed), media, tokenizer=tokenizer, layout=layout, adds_bos=template.adds_bos
    )


@pytest.mark.parametrize(("template_id", "kind"), PAIRS)
def test_labels_decode_to_the_answers(template_id: str, kind: str) -> None:
    tokenizer = make(kind)
    template = TEMPLATES.get(template_id).for_tokenizer(tokenizer)
    turns = [turn for i, a in enumerate(ANSWERS) for turn in (Turn("human", f"Question {i}?"), Turn("gpt", a))]
    chats = [turns[i : i + 2] for i in range(0, len(turns), 2)] + ([] if template_id == "caption" else [turns])
    for chat in chats:
        ids, labels = _tokens(template, tokenizer, chat, media=(3, 2))
        assert len(ids) == len(labels) and labels[0] == IGNORE_INDEX
        assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
        decoded = [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in _runs(labels)]
        assert decoded == [template.answer(turn.text) for turn in chat if turn.role == "gpt"]


@pytest.mark.parametrize(("template_id", "kind"), PAIRS)
@pytest.mark.parametrize("layout", ["after-bos", "inline"])
def test_training_is_the_prompt_and_then_the_answer(template_id: str, kind: str, layout: str) -> None:
    tokenizer = make(kind)
    template = TEMPLATES.get(template_id).for_tokenizer(tokenizer)
    turns = [
        Turn("human", "<image>\nWhat moves?"),
        Turn("gpt", "A circle."),
        Turn("human", "Where?"),
        Turn("gpt", "Left."),
    ]
    for end in (2,) if template_id == "caption" else (2, 4):
        ids, labels = _tokens(template, tokenizer, turns[:end], media=(5,), layout=layout)
        builder = PromptBuilder(template, keep_placeholders=layout == "inline")
        for turn in turns[: end - 1]:
            builder.add_turn(turn.role, turn.text)
        prompt = builder.get_prompt()
        answer = _runs(labels)[-1]
        got = tokenize_prompt(prompt, (5,), tokenizer=tokenizer, layout=layout)
        assert got + answer == ids
        if end == 2 and template_id != "caption":  # the same text as a plain string
            plain = str(prompt) + ""
            assert got == tokenize_prompt(plain, (5,), tokenizer=tokenizer, layout=layout, template=template)


@pytest.mark.parametrize("kind", KINDS)
def test_begin_token_stands_once_and_slots_behind_the_first_token(kind: str) -> None:
    tokenizer = make(kind)
    ids = tokenize_prompt("In: hi\nOut:", (2, 1), tokenizer=tokenizer, layout="after-bos")
    assert ids[1:4] == [VISUAL_SLOT] * 3 and VISUAL_SLOT not in ids[4:]
    if tokenizer.bos_token_id is not None:
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_inline_slots_stand_in_the_place_of_their_placeholder() -> None:
    tokenizer = make("qwen2")
    template = TEMPLATES.get("qwen-2")
    turns = [
        Turn("human", "First <video> then <image>?"),
        Turn("gpt", "Yes."),
        Turn("human", "And <image>"),
        Turn("gpt", "No."),
    ]
    ids, _ = _tokens(template, tokenizer, turns, media=(2, 3, 1), layout="inline")
    text = tokenizer.decode([token if token != VISUAL_SLOT else tokenizer("#")["input_ids"][0] for token in ids])
    assert "First ## then ###?" in text and "And #<|im_end|>" in text
    # A medium without a placeholder comes before the first message.
    ids, _ = _tokens(template, tokenizer, [Turn("human", "Who?"), Turn("gpt", "I.")], media=(2,), layout="inline")
    text = tokenizer.decode([token if token != VISUAL_SLOT else tokenizer("#")["input_ids"][0] for token in ids])
    assert "<|im_start|>user\n##\nWho?" in text


@pytest.mark.parametrize("layout", ["after-bos", "inline"])
def test_more_placeholders_than_media_is_an_error(layout: str) -> None:
    template, tokenizer = TEMPLATES.get("pure"), make("llama2")
    turns = [Turn("human", "<image><video> Q"), Turn("gpt", "A")]
    with pytest.raises(ValueError, match="2 <image>/<video> placeholders but 1 images or videos"):
        _tokens(template, tokenizer, turns, media=(4,), layout=layout)
    with pytest.raises(ValueError, match="1 <image>/<video> placeholders but 0 images or videos"):
        _tokens(template, tokenizer, [Turn("human", "<image>\nQ"), Turn("gpt", "A")], layout=layout)
    with pytest.raises(ValueError, match="placeholder"):
        tokenize_prompt("In: <image> <image>\nOut:", (4,), tokenizer=tokenizer, layout="inline")
    with pytest.raises(ValueError, match="no image or video came with it"):
        tokenize_prompt("In: <image>\nOut:", (), tokenizer=tokenizer, layout="inline")


def test_placeholders_of_a_prompt_mean_nothing_after_bos() -> None:
    builder = PromptBuilder(TEMPLATES.get("pure"))
    builder.add_turn("human", "<image><image>\nQ")
    prompt = builder.get_prompt()
    got = tokenize_prompt(prompt, (4,), tokenizer=make("llama2"), layout="after-bos")
    assert got == tokenize_prompt("In: Q\nOut:", (4,), tokenizer=make("llama2"), layout="after-bos")


def test_html_in_a_text_only_row_is_text() -> None:
    turns = [Turn("human", "What does <video> mean in HTML?"), Turn("gpt", "A player: <video src=x>")]
    tokenizer = make("llama3")
    ids, _ = _tokens(TEMPLATES.get("pure").for_tokenizer(tokenizer), tokenizer, turns, layout="inline")
    assert VISUAL_SLOT not in ids and "does <video> mean" in tokenizer.decode(ids)


def test_unknown_layout_names_the_flag() -> None:
    with pytest.raises(ValueError, match=r"--model\.visual_token_layout"):
        place_turns([Turn("human", "Q")], 0, "before")


def test_template_takes_the_end_token_that_the_tokenizer_knows() -> None:
    pure = TEMPLATES.get("pure")
    assert pure.for_tokenizer(make("llama2")) is pure
    fitted = pure.for_tokenizer(make("gpt2"))
    assert fitted.end == "<|endoftext|>" and fitted.stop == ("<|endoftext|>",)
    assert TEMPLATES.get("caption").for_tokenizer(make("gemma")).end == "<eos>"


@pytest.mark.parametrize(
    ("kind", "source", "end", "gap"),
    [("qwen2", CHATML, "<|im_end|>", ""), ("llama2", OLD_LLAMA, " </s>", " "), ("qwen2", THINKING, "<|im_end|>", "")],
)
def test_template_of_the_tokenizer_itself(kind: str, source: str, end: str, gap: str) -> None:
    tokenizer = make(kind)
    messages = [("user", "Hi?"), ("assistant", "Yes {x}."), ("user", "Go on")]
    wanted = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        chat_template=source,
        tokenize=False,
        add_generation_prompt=True,
    )
    tokenizer.chat_template = source
    try:
        template = tokenizer_template(tokenizer)
    finally:
        tokenizer.chat_template = None
    builder = PromptBuilder(template)
    for role, text in messages:
        builder.add_turn("gpt" if role == "assistant" else "human", text)
    assert template.end == end
    assert builder.get_prompt() == wanted.removeprefix(tokenizer.bos_token or "\0")
    ids, labels = _tokens(template, tokenizer, [Turn("human", "Hi?"), Turn("gpt", "Yes.")])
    assert [tokenizer.decode(run) for run in _runs(labels)] == [f"Yes.{end}"]
    assert ids[: len(ids) - len(_runs(labels)[0])] == tokenize_prompt(
        PromptBuilder(template).get_potential_prompt("Hi?"), (), tokenizer=tokenizer, layout="after-bos"
    )
    assert (template.with_system is None) == bool(gap)


def test_tokenizer_without_a_chat_template_says_what_to_type() -> None:
    with pytest.raises(ValueError, match=r"--model\.prompt_template"):
        tokenizer_template(make("gpt2"))
