"""Options in a question, and which of them an answer means."""

from __future__ import annotations

import pytest

from prismatic.eval.choices import Option, meant_option, parse_options

QUESTION = "What moves?\n(A) A red circle.\n(B) a blue square\n(C) C is a letter\nAnswer with the letter."


def test_options_in_brackets_and_with_points() -> None:
    assert [o.letter for o in parse_options(QUESTION)] == ["A", "B", "C"]
    assert parse_options("Which?\nA. one\nB) two\nC: three ")[2] == Option("C", "three")


@pytest.mark.parametrize(
    "question", ["What moves?", "Which?\n(A) one", "Which?\nA. one\nC. three", "Yes. No?\nB. two\nC. x"]
)
def test_no_options_is_said(question: str) -> None:
    with pytest.raises(ValueError, match="at least two options"):
        parse_options(question)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("(B)", 1),
        (" B. a blue square", 1),
        ("b) no", None),
        ("A blue square", 1),  # begins with an A that is a word
        ("a red circle", 0),
        ("D", None),
        ("something else", None),
        ("", None),
    ],
)
def test_meant_option(text: str, index: int | None) -> None:
    assert meant_option(text, parse_options(QUESTION)) == index
