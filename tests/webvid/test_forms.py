"""Questions and answers that are made of several captions."""

from __future__ import annotations

import numpy as np
import pytest

from prismatic.data.weave import Shown
from prismatic.eval.choices import meant_option, parse_options
from prismatic.webvid.forms import FORMS

CAPTIONS = ["A cat sits", "TV studio.", "I run away. ", "a dog"]
PROMPT = "What happens?"


def _form(name: str, captions: list[str], seed: int = 0, **facts: object) -> tuple[str, str]:
    return FORMS.get(name)([Shown(c, **facts) for c in captions], PROMPT, np.random.default_rng(seed))


def test_joined_is_what_the_older_system_wrote() -> None:
    assert _form("joined", ["cap1", "cap2", "cap3"]) == (PROMPT, "cap1. cap2. cap3.")
    # A full stop of the caption's own is not doubled.
    assert _form("joined", CAPTIONS) == (PROMPT, "A cat sits. TV studio. I run away. a dog.")
    assert _form("joined", ["x."]) == (PROMPT, "x.")


def test_ordered() -> None:
    assert _form("ordered", CAPTIONS)[1] == "First, a cat sits. Then, TV studio. Then, I run away. Finally, a dog."
    assert _form("ordered", ["A cat", "A dog"])[1] == "First, a cat. Finally, a dog."
    assert _form("ordered", ["A cat"])[1] == "First, a cat."


def test_indexed_asks_about_one_of_them() -> None:
    seen = {_form("indexed", ["one", "two", "three"], seed) for seed in range(30)}
    assert seen == {
        (f"Describe what is happening in the {k} video.", f"{a}.")
        for k, a in (("first", "one"), ("second", "two"), ("third", "three"))
    }
    many = {_form("indexed", [str(i) for i in range(40)], seed)[0] for seed in range(40)}
    assert any("video number" in question for question in many)


def test_timestamped_by_seconds_or_by_frames() -> None:
    asked, said = _form("timestamped", ["One.", "two"], duration=12.4)
    assert asked == f"{PROMPT} Give the time of each part." and said == "0:00 - 0:12: One.\n0:12 - 0:25: two."
    assert _form("timestamped", ["a"], duration=3725.0)[1] == "0:00 - 1:02:05: a."
    clips = [Shown("one", 2, 5.0), Shown("two", 1, None)]
    asked, said = FORMS.get("timestamped")(clips, PROMPT, np.random.default_rng(0))
    assert asked.endswith("Give the frames of each part.") and said == "Frames 1 - 2: one.\nFrame 3: two."


@pytest.mark.parametrize("count", [2, 3, 5])
def test_order_question_has_one_right_order(count: int) -> None:
    captions = [f"event {i}" for i in range(count)]
    letters = set()
    for seed in range(40):
        question, answer = _form("order-question", captions, seed)
        lines = question.split("\n")
        numbered = {line.split(". ")[0]: line.split(". ")[1].rstrip(".") for line in lines if line[0].isdigit()}
        options = parse_options(question)
        orders = [[numbered[n] for n in option.text.split(", ")] for option in options]
        assert len(options) == min(4, 2 if count == 2 else 6) and orders.count(captions) == 1
        right = meant_option(answer, options)
        assert right is not None and orders[right] == captions
        letters.add(answer[0])
    assert len(letters) >= 2, "the key is always the same letter"


def test_order_question_counts_equal_captions_once() -> None:
    question, _ = _form("order-question", ["a", "b", "a.", "c"])
    assert sum(line[0].isdigit() for line in question.split("\n")) == 3
    assert _form("order-question", ["same", "same."]) == (PROMPT, "same. same.")


def test_odd_one_out() -> None:
    captions = ["A brown dog runs on grass", "Stock market chart", "The dog lies on grass", "A dog on the grass"]
    question, answer = _form("odd-one-out", captions)
    options = parse_options(question)
    assert [o.text for o in options] == [f"the {k} video" for k in ("first", "second", "third", "fourth")]
    assert answer == "B. the second video." and meant_option(answer, options) == 1
    # Nothing to tell one from the others by: no key is made up.
    for captions in (["a dog", "a cat"], ["red sun", "blue sea", "old man"], ["same", "same", "same"]):
        assert _form("odd-one-out", captions)[0].startswith("Describe what is happening in the ")


@pytest.mark.parametrize("name", FORMS.names())
def test_every_form_gives_a_question_and_an_answer(name: str) -> None:
    for captions in (CAPTIONS, ["alone"], ["odd <video> mark\nof a caption", "two", "three"]):
        question, answer = _form(name, captions)
        assert question
        assert answer.endswith(".")
        assert "<" not in question + answer
