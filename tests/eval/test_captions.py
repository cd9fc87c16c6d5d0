"""Text comparison, and the scores that need a package of their own."""

from __future__ import annotations

import sys

import pytest

from prismatic.eval.captions import bleu, exact_match, rouge_l, score_captions
from prismatic.eval.text import normalise, words

ANSWERS = ["A red circle moves left and then stops.", "A blue square."]
TRUTHS = ["A red circle moves right and then stops.", "A blue square."]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat.", "cat"),
        ("a cat, an owl & the dog!", "cat owl dog"),
        ("It isn't 'so'", "it isn't so"),
        ("it isn\u2019t", "it isn't"),
        ("A", "a"),  # an article alone is an answer
        ("\u00c9tude n\u00b0 5", "\u00e9tude n 5"),
        ("snake_case", "snake case"),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_words_of_other_scripts_stay() -> None:
    assert words("\u732b \u304c \u3044\u308b\u3002") == ["\u732b", "\u304c", "\u3044\u308b"]


def test_exact_match_ignores_articles_case_and_signs() -> None:
    assert exact_match(["the cat", "a dog!", "no"], ["Cat", "A dog", "yes"]) == pytest.approx(2 / 3)
    assert exact_match([], []) == 0.0


def test_bleu_and_rouge_agree_with_what_they_mean() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    assert bleu(TRUTHS, TRUTHS) == pytest.approx(100.0)
    assert rouge_l(TRUTHS, TRUTHS) == pytest.approx(1.0)
    # Seven of eight words in common in the first row, all in the second.
    assert rouge_l(ANSWERS, TRUTHS) == pytest.approx((7 / 8 + 1) / 2)
    assert rouge_l(["\u732b \u304c"], ["\u732b \u304c"]) == 1.0
    assert 0 < bleu(ANSWERS, TRUTHS) < 100


def test_without_the_packages_the_scores_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sacrebleu", "rouge_score", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, name, None)
    scores = score_captions(ANSWERS, TRUTHS)
    assert scores["bleu"] is None
    assert scores["rouge_l"] is None
    assert set(scores["unavailable"]) == {"bleu", "rouge_l"}
    assert "pip install 'prismatic[eval]'" in scores["unavailable"]["bleu"]
    assert scores["exact_match"] == 0.5
    assert scores["cider"] > 0


def test_no_rows_score_zero() -> None:
    assert score_captions([], [])["exact_match"] == 0.0
