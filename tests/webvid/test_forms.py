"""Questions and answers that are made of several captions."""

from __future__ import annotations

import numpy as np
import pytest

from prismatic.webvid.forms import FORMS

CAPTIONS = ["A cat sits", "TV studio.", "I run away. ", "a dog"]
PROMPT = "What happens?"


def _form(name: str, captions: list[str], seed: int = 0) -> tuple[str, str]:
    return FORMS.get(name)(captions, PROMPT, np.random.default_rng(seed))


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


@pytest.mark.parametrize("name", FORMS.names())
def test_every_form_gives_a_question_and_an_answer(name: str) -> None:
    question, answer = _form(name, CAPTIONS)
    assert question
    assert answer.endswith(".")
    assert "<" not in question
