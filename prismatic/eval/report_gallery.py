"""The report's gallery: some held-out clips as pictures, with what was asked, answered and true."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismatic.eval.metrics import METRICS, Compared
from prismatic.eval.text import normalise
from prismatic.report.pictures import Picture, data_uri, thumbnail
from prismatic.video.decode import MediaError, open_frames, open_video, read_image
from prismatic.video.images import PICTURE_EXTENSIONS
from prismatic.video.storage import is_url

log = logging.getLogger(__name__)

NUM_CARDS = 12
NUM_MISTAKES = 4
FRAMES_SHOWN = 8
SIDE = 128  # longest side of a picture, pixels
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Span:
    """A piece of a text; `same` when the other text has it at that place too."""

    text: str
    same: bool


@dataclass(frozen=True)
class Card:
    """One clip of the gallery. `problem` says why there are no pictures."""

    media: str
    question: str
    answer: list[Span]
    truth: list[Span]
    right: bool
    compared: list[Compared]
    others: list[tuple[str, list[Span]]]
    pictures: list[Picture]
    problem: str


def cards(
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    others: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
) -> tuple[list[Card], list[Card]]:
    """(gallery, mistakes): rows taken at even distances whatever their answers, then the first wrong ones beside those.

    rows, metrics: predictions.jsonl and metrics.json of the evaluation shown. others: (label, rows) of evaluations of
    the same data, whose answers stand below.
    """
    even = np.unique(np.linspace(0, len(rows) - 1, min(NUM_CARDS, len(rows))).astype(int)) if rows else []
    chosen = [int(i) for i in even]
    wrong = [i for i, row in enumerate(rows) if not _is_right(row) and i not in set(chosen)][:NUM_MISTAKES]
    by_id = [(label, {row["id"]: row["prediction"] for row in answers}) for label, answers in others]

    def card(row: Mapping[str, Any]) -> Card:
        answer, truth = difference(row["prediction"], row["reference"])
        metric = metrics.get("metric")
        compared = METRICS.get(metric).compare(row["prediction"], row["reference"]) if metric else []
        pictures, problem = _pictures(row["media"], Path(metrics["media_root"]))
        return Card(
            media=", ".join(part if isinstance(part, str) else f"{part[0]} ..." for part in row["media"]),
            question=row["question"],
            answer=answer,
            truth=truth,
            right=_is_right(row),
            compared=compared,
            others=[(label, difference(a[row["id"]], row["reference"])[0]) for label, a in by_id if row["id"] in a],
            pictures=pictures,
            problem=problem,
        )

    return [card(rows[i]) for i in chosen], [card(rows[i]) for i in wrong]


def difference(answer: str, truth: str) -> tuple[list[Span], list[Span]]:
    """Both texts in pieces of whole words, those that the other text lacks at that place marked as not the same."""
    said, true = answer.split(), truth.split()
    keys = [[normalise(word) or word for word in side] for side in (said, true)]
    matcher = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False)
    spans: tuple[list[Span], list[Span]] = ([], [])
    for kind, a, b, c, d in matcher.get_opcodes():
        for side, piece in ((0, said[a:b]), (1, true[c:d])):
            if piece:
                spans[side].append(Span(" ".join(piece), kind == "equal"))
    return spans


def _is_right(row: Mapping[str, Any]) -> bool:
    if "correct_option" in row:
        return bool(row["prediction"] == row["correct_option"])
    return normalise(row["prediction"]) == normalise(row["reference"])


def _pictures(media: Sequence[str | list[str]], root: Path) -> tuple[list[Picture], str]:
    """Up to FRAMES_SHOWN pictures over all media of a row, in order, and what went wrong with the files if anything."""
    pictures: list[Picture] = []
    share = max(1, FRAMES_SHOWN // max(1, len(media)))
    try:
        for medium in media[:FRAMES_SHOWN]:
            for frame, when in _frames(medium, root, share):
                pictures.append(Picture(data_uri(thumbnail(frame, SIDE), JPEG_QUALITY), when))
    except MediaError as error:
        log.warning("report: %s", error)
        return pictures, str(error)
    return pictures, ""


def _frames(medium: str | list[str], root: Path, count: int) -> list[tuple[NDArray[np.uint8], str]]:
    def place(path: str) -> str:
        return path if is_url(path) else str(root / path)

    if isinstance(medium, str) and Path(medium).suffix.lower() in PICTURE_EXTENSIONS:
        return [(read_image(place(medium))[0], "")]
    listed = not isinstance(medium, str)
    with open_frames([place(m) for m in medium]) if listed else open_video(place(medium)) as clip:
        indices = np.unique(np.linspace(0, len(clip) - 1, min(count, len(clip))).astype(int))
        times = clip.timestamps[indices] - (0 if listed else clip.timestamps[0])
        return [(f, f"{t:.1f} s") for f, t in zip(clip.get(indices), times, strict=True)]
