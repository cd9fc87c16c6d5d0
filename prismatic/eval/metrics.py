"""Scorers of one dataset's own, beside the general ones. They see nothing but the generated and the reference text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prismatic.data import moving_shapes
from prismatic.registry import Registry


@dataclass(frozen=True)
class Compared:
    """What one attribute is in the answer and in the reference; `said` is None when the answer does not name it."""

    name: str
    said: str | None
    true: str

    @property
    def right(self) -> bool:
        return self.said == self.true


@dataclass(frozen=True)
class Metric:
    """A dataset's own scorer.

    score: (predictions, references) -> entries of metrics.json. compare: (prediction, reference) -> attribute by
    attribute, for the report.
    """

    score: Callable[[Sequence[str], Sequence[str]], dict[str, Any]]
    compare: Callable[[str, str], list[Compared]]


METRICS: Registry[Metric] = Registry("metric", flag="--dataset.metric")


def compare_shapes(prediction: str, reference: str) -> list[Compared]:
    """The attributes that the reference caption names, beside what the generated caption says of each."""
    said, true = moving_shapes.parse_caption(prediction), moving_shapes.parse_caption(reference)
    return [Compared(name, said[name], value) for name in moving_shapes.ATTRIBUTES if (value := true[name]) is not None]


def score_shapes(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Share of right values for each attribute over the rows whose reference names it, and the mean of these shares.

    An event counts as right only with its colour ("turns blue"). Raises ValueError when no reference names an
    attribute: then the dataset is not moving-shapes.
    """
    right = dict.fromkeys(moving_shapes.ATTRIBUTES, 0)
    seen = dict.fromkeys(moving_shapes.ATTRIBUTES, 0)
    for prediction, reference in zip(predictions, references, strict=True):
        for compared in compare_shapes(prediction, reference):
            seen[compared.name] += 1
            right[compared.name] += compared.right
    if predictions and not any(seen.values()):
        raise ValueError("--dataset.metric moving-shapes: no reference caption names a shape, colour, size or event")
    attributes = {name: right[name] / seen[name] for name in right if seen[name]}
    mean = sum(attributes.values()) / len(attributes) if attributes else 0.0
    return {"attribute_accuracy": mean, "attributes": attributes}


METRICS.add("moving-shapes", Metric(score_shapes, compare_shapes))
