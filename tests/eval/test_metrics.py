"""The scorer of moving-shapes: from texts alone."""

from __future__ import annotations

import pytest

from prismatic.eval.metrics import METRICS, compare_shapes, score_shapes

TRUTH = "A small red circle moves left and then turns blue."


def test_attributes_are_scored_one_by_one() -> None:
    answers = [TRUTH, "A large red circle moves left and then turns green.", "A red star."]
    scores = score_shapes(answers, [TRUTH] * 3)
    expected = {"shape": 2 / 3, "colour": 1.0, "size": 1 / 3, "direction": 2 / 3, "event": 1 / 3}
    assert scores["attributes"] == pytest.approx(expected)
    assert scores["attribute_accuracy"] == pytest.approx(sum(expected.values()) / 5)


def test_what_is_not_said_is_wrong() -> None:
    compared = {c.name: c for c in compare_shapes("", TRUTH)}
    assert len(compared) == 5
    assert not any(c.right or c.said for c in compared.values())


def test_references_of_another_dataset_are_refused() -> None:
    with pytest.raises(ValueError, match="no reference caption names"):
        score_shapes(["a"], ["someone cooks soup"])
    assert score_shapes([], []) == {"attribute_accuracy": 0.0, "attributes": {}}


def test_unknown_metric_has_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'moving-shapes'"):
        METRICS.get("moving-shape")
