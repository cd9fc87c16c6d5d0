"""CIDEr-D against values worked out by hand, and the properties the paper gives it."""

from __future__ import annotations

import math

import pytest

from prismatic.eval.cider import cider


def test_value_worked_out_by_hand() -> None:
    # Two rows, one reference each. Every group of words occurs in one row: its weight is log(2).
    # Row 1, "a b" for "a c": of two single words one agrees, so the cosine is 1/2; no pair agrees; orders 3, 4 are
    # empty. Row 2 is right in orders 1 and 2, which is all that two words have.
    rows = cider(["a b", "d e"], [["a c"], ["d e"]])
    assert rows == pytest.approx(10 * ((1 / 2) / 4 + 2 / 4) / 2)


def test_a_word_of_every_row_counts_for_nothing() -> None:
    with_article = cider(["the cat", "the dog"], [["the bird"], ["the fish"]])
    assert with_article == 0.0


def test_repeating_a_right_word_is_clipped_and_costs_length() -> None:
    # Said "x x x", true "x": clipped to one, over norms 3 and 1; the length is off by 2 words.
    told = cider(["x x x", "q"], [["x"], ["q"]])
    expected = 10 * ((1 / 3) / 4 * math.exp(-(2**2) / (2 * 6**2)) + 1 / 4) / 2
    assert told == pytest.approx(expected)


def test_perfect_answers_of_four_words_score_ten() -> None:
    texts = ["one two three four", "five six seven eight"]
    assert cider(texts, [[text] for text in texts]) == pytest.approx(10.0)
    assert cider(texts, [[text.upper() + "."] for text in texts]) == pytest.approx(10.0)


def test_several_references_are_averaged() -> None:
    one = cider(["a b", "d e"], [["a b"], ["d e"]])
    half = cider(["a b", "d e"], [["a b", "x y"], ["d e", "d e"]])
    assert half == pytest.approx(one * 3 / 4)


def test_edges() -> None:
    assert cider([], []) == 0.0
    assert cider(["a cat"], [["a cat"]]) == 0.0  # a single row: no group is rarer than another
    assert cider(["", "b c"], [["a"], ["b c"]]) > 0
    with pytest.raises(ValueError, match="row 1 has no reference"):
        cider(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="one list of references"):
        cider(["a"], [])
