"""Scores of free text against reference text. BLEU and ROUGE-L come from their own packages, extra `eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prismatic.eval.cider import cider
from prismatic.eval.text import normalise, words

INSTALL = "pip install 'prismatic[eval]'"


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions that equal their reference once both are normalised, in [0, 1]; 0 when there are none."""
    pairs = zip(predictions, references, strict=True)
    return sum(normalise(p) == normalise(r) for p, r in pairs) / max(1, len(predictions))


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 as sacrebleu computes it, 0 to 100. Raises ImportError without sacrebleu."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(predictions), [list(references)]).score)


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean F-measure of the longest common subsequence of words, 0 to 1. Raises ImportError without rouge-score.

    Words are those of `text.words`: the package's own tokenizer knows no letters but a to z.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    scores = [
        scorer.score(target=r, prediction=p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)
    ]
    return float(sum(scores) / max(1, len(scores)))


class _Words:
    """The tokenizer that RougeScorer asks for."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def score_captions(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """exact_match [0, 1], cider [0, 10], bleu [0, 100], rouge_l [0, 1].

    A score whose package is missing is None, and `unavailable` says what to install.
    """
    scores: dict[str, Any] = {
        "exact_match": exact_match(predictions, references),
        "cider": cider(predictions, [[reference] for reference in references]),
    }
    unavailable = {}
    for name, scorer in (("bleu", bleu), ("rouge_l", rouge_l)):
        try:
            scores[name] = scorer(predictions, references) if predictions else 0.0
        except ImportError as error:
            scores[name] = None
            unavailable[name] = f"{error}; {INSTALL}"
    return {**scores, "unavailable": unavailable} if unavailable else scores
