"""What is asked of a model and how its answers are scored. A task is an entry of TASKS (`--task`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from prismatic.eval.captions import exact_match, score_captions
from prismatic.eval.choices import meant_option, parse_options
from prismatic.eval.rows import Question, question_of
from prismatic.models.media import EncodedClip
from prismatic.registry import Registry
from prismatic.types import Record

Row = dict[str, Any]


class Answerer(Protocol):
    """The part of a model that evaluation uses."""

    num_frames: int
    resize_strategy: str
    vision_backbone: Any

    def eval(self) -> Any: ...

    def encode_frames(self, clips: list[torch.Tensor]) -> list[EncodedClip]: ...

    def get_prompt_builder(self, system_prompt: str | None = None) -> Any: ...

    def generate_batch(self, clips: list[Any], prompts: list[str], **options: Any) -> list[str]: ...

    def score_choices_batch(
        self, clips: list[Any], prompts: list[str], choices: list[list[str]]
    ) -> list[list[float]]: ...


@dataclass(frozen=True)
class Task:
    """answer: (model, questions, options of generate) -> for each question what is written beside it, with
    `prediction`. score: all answered rows, each with `prediction` and `reference`, -> entries of metrics.json.
    check: called with every record before the first is answered; raises ValueError when the task cannot be done on it.
    """

    answer: Callable[[Answerer, Sequence[Question], dict[str, Any]], list[Row]]
    score: Callable[[Sequence[Row]], dict[str, Any]]
    check: Callable[[Record], None]


TASKS: Registry[Task] = Registry("task", flag="--task")


def prompt_of(vlm: Answerer, text: str) -> str:
    """The model's own prompt around one question."""
    builder = vlm.get_prompt_builder()
    builder.add_turn(role="human", message=text)
    return builder.get_prompt()


def encode_clips(vlm: Answerer, questions: Sequence[Question]) -> list[list[EncodedClip]]:
    """The clips of each question; the frames of all questions go through the model together.

    Clips of any number of frames are taken as they are: their rows may ask for other numbers than the model's own.
    """
    encoded = iter(vlm.encode_frames([clip for question in questions for clip in question.clips]))
    return [[next(encoded) for _ in question.clips] for question in questions]


def generate(vlm: Answerer, questions: Sequence[Question], options: dict[str, Any]) -> list[Row]:
    """Free text, greedy or by beam search, all questions in one batch."""
    prompts = [prompt_of(vlm, question.text) for question in questions]
    texts = vlm.generate_batch(encode_clips(vlm, questions), prompts, do_sample=False, **options)
    return [{"prediction": text} for text in texts]


def choose(vlm: Answerer, questions: Sequence[Question], _options: dict[str, Any]) -> list[Row]:
    """The letter that the model finds likeliest, with the likelihood of each option; all questions in one batch."""
    offered = [parse_options(question.text) for question in questions]
    prompts = [prompt_of(vlm, question.text) for question in questions]
    letters_of = [[option.letter for option in options] for options in offered]
    likely = vlm.score_choices_batch(encode_clips(vlm, questions), prompts, letters_of)
    rows = []
    for question, options, letters, scores in zip(questions, offered, letters_of, likely, strict=True):
        best = letters[int(np.argmax(scores))]
        right = letters[meant_option(question.reference, options) or 0]
        likelihoods = {letter: round(float(score), 6) for letter, score in zip(letters, scores, strict=True)}
        rows.append({"prediction": best, "correct_option": right, "likelihoods": likelihoods})
    return rows


def check_options(record: Record) -> None:
    """Raises ValueError naming the row when it lists no options or its answer is none of them."""
    text, reference = question_of(record)
    try:
        options = parse_options(text)
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error
    if meant_option(reference, options) is None:
        raise ValueError(
            f"{record.source}: the reference answer {reference!r} is none of the options "
            f"{[f'{o.letter}. {o.text}' for o in options]}; it must be a letter or an option's words"
        )


def check_question(record: Record) -> None:
    """Raises ValueError naming the row when it has no question or no reference answer."""
    question_of(record)


def score_caption_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """BLEU, ROUGE-L, CIDEr and exact match of the answers against the references."""
    return score_captions([r["prediction"] for r in rows], [r["reference"] for r in rows])


def score_choice_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Share of rows whose likeliest option is the right one, and the share that guessing would get."""
    count = max(1, len(rows))
    return {
        "accuracy": sum(r["prediction"] == r["correct_option"] for r in rows) / count,
        "chance": sum(1 / len(r["likelihoods"]) for r in rows) / count,
    }


def score_open_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Share of answers that equal the reference once both are normalised."""
    return {"accuracy": exact_match([r["prediction"] for r in rows], [r["reference"] for r in rows])}


TASKS.add("caption", Task(generate, score_caption_rows, check_question))
TASKS.add("choice", Task(choose, score_choice_rows, check_options))
TASKS.add("open", Task(generate, score_open_rows, check_question))
