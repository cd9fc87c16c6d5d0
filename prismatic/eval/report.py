"""What evaluations add to a run folder's `report.html`: scores, and held-out clips with the answer beside the truth.

It shows what is there and says what is missing: a run without evaluation, a clip whose file has gone. The rest of the
page is report/run_report.py's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonlines

from prismatic.eval.report_gallery import Card, cards
from prismatic.eval.report_page import SECTIONS
from prismatic.report.run_report import write_run_report

log = logging.getLogger(__name__)

_SCORES = (
    ("exact_match", "exact match", 1.0),
    ("accuracy", "accuracy", 1.0),
    ("chance", "accuracy of guessing", 1.0),
    ("cider", "CIDEr-D", 10.0),
    ("rouge_l", "ROUGE-L", 1.0),
    ("bleu", "BLEU-4", 100.0),
)


@dataclass(frozen=True)
class Evaluation:
    """What one call of scripts/evaluate.py left in the run folder."""

    name: str
    label: str
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Score:
    """One line of the table of scores: its value in each evaluation, None where it was not measured.

    `share` is the value over the highest possible one (the length of its bar), `text` how it is printed.
    """

    name: str
    cells: list[tuple[float, str] | None]


def find_run_dir(folder: Path) -> Path | None:
    """The run folder that `folder` is or lies in (it holds config.yaml and checkpoints or a metrics log), if any."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (place / "config.yaml").is_file() and (
            (place / "checkpoints").is_dir() or (place / "run-metrics.jsonl").is_file()
        ):
            return place
    return None


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from what the folder holds and return its path.

    Reads config.yaml, the step log, and every evaluation*/ folder. Raises ValueError when there is no config.yaml,
    and for a log or an evaluation that is not what its name says.
    """
    import jinja2

    evaluations = read_evaluations(run_dir)
    gallery: list[Card] = []
    mistakes: list[Card] = []
    if evaluations:
        same_rows = evaluations[0].metrics.get("annotations")
        others = [(e.label, e.rows) for e in evaluations[1:] if e.metrics.get("annotations") == same_rows]
        gallery, mistakes = cards(evaluations[0].rows, evaluations[0].metrics, others)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    scores = environment.from_string(SECTIONS).render(
        evaluations=evaluations,
        attributes=_attribute_scores(evaluations),
        scores=_scores(evaluations),
        gallery=gallery,
        mistakes=mistakes,
    )
    return write_run_report(run_dir, tiles=_tiles(evaluations), sections=[scores])


def summary(metrics: Mapping[str, Any]) -> str:
    """The scores of one metrics.json in a few lines."""
    lines = [
        f"{metrics['num_scored']} rows, {metrics['num_frames']} frame(s) a video, {metrics['num_skipped']} skipped"
    ]
    for key, name, highest in _SCORES:
        value = metrics.get(key)
        if value is not None:
            lines.append(f"  {name}: {value:.4f}" + (f" (of {highest:g})" if highest != 1 else ""))
    lines += [f"  {name}: not measured ({reason})" for name, reason in metrics.get("unavailable", {}).items()]
    if metrics.get("attributes"):
        each = ", ".join(f"{name} {value:.1%}" for name, value in metrics["attributes"].items())
        lines.append(f"  attribute accuracy: {metrics['attribute_accuracy']:.1%} ({each})")
    return "\n".join(lines)


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """Every evaluation*/ folder that holds metrics.json, the one named `evaluation` first."""
    found = []
    for folder in sorted(run_dir.glob("evaluation*"), key=lambda path: (path.name != "evaluation", path.name)):
        metrics = folder / "metrics.json"
        if metrics.is_file():
            predictions = folder / "predictions.jsonl"
            rows = read_jsonl(predictions) if predictions.is_file() else []
            values = json.loads(metrics.read_text(encoding="utf-8"))
            frames = values.get("num_frames")
            label = "1 frame a video" if frames == 1 else f"{frames} frames a video"
            if any(label == earlier.label for earlier in found):
                label = f"{label}, {folder.name}"
            found.append(Evaluation(folder.name, label, values, rows))
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. Raises ValueError naming the line; a last line that was cut off is left out."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        try:
            rows.extend(jsonlines.Reader(file).iter(type=dict))
        except jsonlines.InvalidLineError as error:
            if error.line.endswith("\n") or file.read(1):
                raise ValueError(f"{path}, {error}") from error
            log.warning("%s: the last line is cut off, left out", path)
    return rows


def _tiles(evaluations: list[Evaluation]) -> list[tuple[str, str]]:
    """(number, what it is), the few that a reader looks for first."""
    tiles = []
    for evaluation in evaluations:
        value = evaluation.metrics.get("attribute_accuracy", evaluation.metrics.get("accuracy"))
        if value is not None:
            tiles.append((f"{value:.1%}", f"held-out accuracy, {evaluation.label}"))
    if evaluations:
        metrics = evaluations[0].metrics
        skipped = f", {metrics['num_skipped']} skipped" if metrics["num_skipped"] else ""
        tiles.append((f"{metrics['num_scored']:,}", f"held-out rows answered{skipped}"))
    return tiles


def _attribute_scores(evaluations: list[Evaluation]) -> list[Score]:
    names = dict.fromkeys(name for e in evaluations for name in e.metrics.get("attributes", {}))
    tables = [e.metrics.get("attributes", {}) for e in evaluations]
    lines = [Score(n, [(t[n], f"{t[n]:.1%}") if n in t else None for t in tables]) for n in names]
    means = [e.metrics.get("attribute_accuracy") for e in evaluations]
    if lines:
        lines.append(Score("mean", [None if m is None else (m, f"{m:.1%}") for m in means]))
    return lines


def _scores(evaluations: list[Evaluation]) -> list[Score]:
    lines = []
    for key, name, highest in _SCORES:
        values = [e.metrics.get(key) for e in evaluations]
        if any(value is not None for value in values):
            texts = [None if v is None else (v / highest, f"{v:.1%}" if highest == 1 else f"{v:.2f}") for v in values]
            lines.append(Score(f"{name}" if highest == 1 else f"{name} (of {highest:g})", texts))
    return lines
