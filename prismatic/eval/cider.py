"""CIDEr-D: how close a caption is to its references, rare word groups weighing more than common ones.

Formulas: Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, section 6
(CIDEr-D). Differences to the reference tool: words are what stands between white space after lower-casing and removal
of punctuation (no Penn Treebank tokenizer, which needs Java), and nothing is stemmed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from prismatic.eval.text import words

MAX_ORDER = 4
SIGMA = 6.0  # width, in words, of the penalty for a length that differs from the reference's
SCALE = 10.0  # the reference tool reports ten times the mean, and so do published tables

Grams = Counter[tuple[str, ...]]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D over rows, from 0 to 10. `references` holds one or more captions for each prediction.

    A word group counts by the log of (rows / rows whose references use it), so over a single row, where every group
    is as common as can be, the score is 0. Raises ValueError on lists of different length or a row without references.
    """
    if len(predictions) != len(references):
        raise ValueError(f"CIDEr needs one list of references a prediction, got {len(references)}, {len(predictions)}")
    if not predictions:
        return 0.0
    if not all(references):
        raise ValueError(f"CIDEr: row {next(i for i, r in enumerate(references) if not r)} has no reference")
    counted = [[_grams(reference) for reference in row] for row in references]
    rows_with: Grams = Counter()
    for row in counted:
        rows_with.update({gram for reference in row for gram in reference})
    log_rows = math.log(len(predictions))

    def weigh(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        """Term frequency times inverse document frequency, one table for each order 1..4."""
        tables: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for gram, count in grams.items():
            tables[len(gram) - 1][gram] = count * (log_rows - math.log(max(1, rows_with[gram])))
        return tables

    total = 0.0
    for prediction, row in zip(predictions, counted, strict=True):
        said = _grams(prediction)
        total += sum(_similarity(said, weigh(said), r, weigh(r)) for r in row) / len(row)
    return SCALE * total / len(predictions)


def _grams(text: str) -> Grams:
    tokens = words(text)
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_ORDER + 1) for i in range(len(tokens) - n + 1))


def _length(grams: Grams) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)


def _similarity(
    said: Grams,
    said_weights: list[dict[tuple[str, ...], float]],
    true: Grams,
    true_weights: list[dict[tuple[str, ...], float]],
) -> float:
    """Mean over the orders of the clipped cosine, times the length penalty. In [0, 1]."""
    total = 0.0
    for a, b in zip(said_weights, true_weights, strict=True):
        norms = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
        if norms > 0:
            total += sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b) / norms
    gap = _length(said) - _length(true)
    return math.exp(-(gap**2) / (2 * SIGMA**2)) * total / MAX_ORDER
