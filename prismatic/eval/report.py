"""`report.html` of a run folder: settings, loss curve, scores, and held-out clips with the answer beside the truth.

One file that opens without a network. It shows what is there and says what is missing: a run without evaluation, a
clip whose file has gone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prismatic.eval.report_gallery import Card, cards
from prismatic.eval.report_loss import Series, loss_svg
from prismatic.eval.report_page import PAGE

log = logging.getLogger(__name__)

# (where it stands in config.yaml, what a reader calls it)
_SETTINGS = (
    ("model.model_path", "native VLM"),
    ("model.vision_backbone_id", "vision backbone"),
    ("model.frame_aggregator", "frame aggregator"),
    ("model.arch_specifier", "projector"),
    ("model.llm_backbone_id", "LLM"),
    ("model.num_frames", "frames a video"),
    ("model.visual_token_layout", "visual tokens stand"),
    ("dataset.dataset_id", "training data"),
    ("val_dataset.dataset_id", "validation data"),
    ("stage", "stage"),
    ("seed", "seed"),
    ("model.finetune_epochs", "epochs"),
    ("model.finetune_global_batch_size", "examples a step"),
    ("model.finetune_learning_rate", "peak learning rate"),
    ("model.finetune_weight_decay", "weight decay"),
    ("model.finetune_lr_scheduler_type", "schedule"),
)
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

    config_file = run_dir / "config.yaml"
    if not config_file.is_file():
        raise ValueError(f"{run_dir} is not a run folder: it has no config.yaml")
    config_text = config_file.read_text(encoding="utf-8")
    config = yaml.safe_load(config_text) or {}
    loss, validation = read_losses(run_dir)
    evaluations = read_evaluations(run_dir)
    gallery: list[Card] = []
    mistakes: list[Card] = []
    if evaluations:
        same_rows = evaluations[0].metrics.get("annotations")
        others = [(e.label, e.rows) for e in evaluations[1:] if e.metrics.get("annotations") == same_rows]
        gallery, mistakes = cards(evaluations[0].rows, evaluations[0].metrics, others)
    svg = loss_svg(loss, validation) if loss.steps else ""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(PAGE).render(
        run_id=run_dir.name,
        settings=_settings(config),
        config_text=config_text,
        tiles=_tiles(loss, validation, evaluations),
        loss_svg=svg,
        evaluations=evaluations,
        attributes=_attribute_scores(evaluations),
        scores=_scores(evaluations),
        gallery=gallery,
        mistakes=mistakes,
    )
    target = run_dir / "report.html"
    temporary = target.with_name("report.html.partial")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(target)
    return target


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


def read_losses(run_dir: Path) -> tuple[Series, Series]:
    """(training loss, validation loss) by step out of the run's step log; empty series when there is no log."""
    loss, validation = Series("training loss"), Series("validation loss")
    index = run_dir / "run-metrics.jsonl"
    run_id = read_jsonl(index)[0]["run_id"] if index.is_file() and index.stat().st_size else run_dir.name
    step_log = run_dir / f"{run_id}.jsonl"
    for row in read_jsonl(step_log) if step_log.is_file() else []:
        values = {key.partition("/")[2]: value for key, value in row.items()}
        for name, series in (("Loss (Raw)", loss), ("Validation Loss", validation)):
            if values.get(name) is not None and values.get("Step") is not None:
                series.add(int(values["Step"]), float(values[name]))
    return loss, validation


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
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                log.warning("%s: the last line is cut off, left out", path)
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return rows


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for path, name in _SETTINGS:
        value: Any = config
        if config.get("stage") == "align":
            path = path.replace("model.finetune_", "model.align_")
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found.append((name, str(value)))
    return found


def _tiles(loss: Series, validation: Series, evaluations: list[Evaluation]) -> list[tuple[str, str]]:
    """(number, what it is), the few that a reader looks for first."""
    tiles = []
    for evaluation in evaluations:
        value = evaluation.metrics.get("attribute_accuracy", evaluation.metrics.get("accuracy"))
        if value is not None:
            tiles.append((f"{value:.1%}", f"held-out accuracy, {evaluation.label}"))
    if validation.values:
        tiles.append((f"{validation.values[-1]:.4f}", "validation loss at the end"))
    if loss.steps:
        tiles.append((f"{loss.steps[-1]:,}", "optimizer steps"))
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
