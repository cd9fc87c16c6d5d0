"""Conversations cut to the longest text: visual tokens stay, and no example without labels passes."""

from __future__ import annotations

import pytest

from prismatic.data.tokenize import Tokenized, ZeroLabelsError, tokenize_chat
from prismatic.prompting import TEMPLATES
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Turn
from tests.tokenizer_kinds import KINDS, make

TURNS = [
    Turn("human", "<image>\nWhat is it?"),
    Turn("gpt", "A red circle."),
    Turn("human", "And <video>?"),
    Turn("gpt", "It stops."),
]


def _tokenize(turns=TURNS, media=(4, 6), layout="inline", max_length=2048, kind="llama2", **options) -> Tokenized:
    tokenizer = make(kind)
    template = TEMPLATES.get("vicuna-v15").for_tokenizer(tokenizer)
    return tokenize_chat(
        turns, media, template=template, tokenizer=tokenizer, layout=layout, max_length=max_length, **options
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["inline", "after-bos"])
def test_slots_labels_and_text(kind: str, layout: str) -> None:
    tokens = _tokenize(kind=kind, layout=layout)
    tokenizer = make(kind)
    assert tokens.input_ids.count(VISUAL_SLOT) == 10 and tokens.cut == 0
    assert len(tokens.input_ids) == len(tokens.labels) and tokens.labels[0] == IGNORE_INDEX
    end = tokenizer.decode([token for token in tokens.labels if token != IGNORE_INDEX][-1:])
    learned = tokenizer.decode([token for token in tokens.labels if token != IGNORE_INDEX])
    assert learned.count(end) == 2 and "red circle." in learned and "USER" not in learned


@pytest.mark.parametrize("layout", ["inline", "after-bos"])
def test_only_text_is_cut_and_slots_never(layout: str) -> None:
    whole = _tokenize(layout=layout)
    text = len(whole.input_ids) - 10
    for max_length in range(text - 8, text):
        tokens = _tokenize(layout=layout, max_length=max_length)
        assert tokens.input_ids.count(VISUAL_SLOT) == 10 and len(tokens.input_ids) == max_length + 10
        kept = [token for token in whole.input_ids if token != VISUAL_SLOT][:max_length]
        assert [token for token in tokens.input_ids if token != VISUAL_SLOT] == kept
        assert tokens.cut == text - max_length


def test_after_bos_is_cut_as_before_the_visual_tokens_came() -> None:
    # The older rule: text is cut to the longest first, visual tokens are then put behind the first token.
    assert _tokenize(layout="after-bos", max_length=100).input_ids[1:11] == [VISUAL_SLOT] * 10


def test_no_label_left_names_the_flag() -> None:
    with pytest.raises(
        ZeroLabelsError, match=r"first answer begins behind the 8 that are kept; raise --model\.llm_max_length"
    ):
        _tokenize(max_length=8)
    with pytest.raises(ZeroLabelsError, match="no answer to learn"):
        _tokenize([TURNS[0]], (4,))


def test_one_label_is_enough() -> None:
    whole = _tokenize()
    first = next(i for i, label in enumerate(whole.labels) if label != IGNORE_INDEX)
    text = first - whole.input_ids[:first].count(VISUAL_SLOT)
    tokens = _tokenize(max_length=text + 1)
    assert [label for label in tokens.labels if label != IGNORE_INDEX] == [whole.labels[first]]
    with pytest.raises(ZeroLabelsError):
        _tokenize(max_length=text)


def test_system_prompt_reaches_the_text() -> None:
    assert "Be brief. USER" in make("llama2").decode(
        [t for t in _tokenize(system_prompt="Be brief.").input_ids if t >= 0]
    )


def test_text_only_and_an_open_question_at_the_end() -> None:
    tokens = _tokenize([Turn("human", "Hi"), Turn("gpt", "Hello."), Turn("human", "More?")], ())
    assert VISUAL_SLOT not in tokens.input_ids and tokens.labels[-1] == IGNORE_INDEX


@pytest.mark.parametrize("turns", [[Turn("gpt", "A")], [Turn("human", "Q"), Turn("human", "Q")]])
def test_turns_out_of_order(turns: list[Turn]) -> None:
    with pytest.raises(ValueError, match="must be from"):
        _tokenize(turns, ())
