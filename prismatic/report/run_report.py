"""`report.html` of a run folder, from what the folder holds: its settings, its curves, what went wrong.

One file that opens without a network. It shows what is there and says what is missing. Scores and clips of finished
evaluations are sections that eval/report.py makes and hands over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prismatic.report.chart import COLOURS, HALF, Line, line_chart, number_text
from prismatic.report.history import History, read_history, smoothed
from prismatic.report.run_page import PAGE
from prismatic.report.tables import (
    ANSWERS,
    REASONS,
    SPIKES,
    SkipReasons,
    card_rows,
    newest_rows,
    validation_parts,
    validation_rows,
)

if TYPE_CHECKING:
    from jinja2 import Template

NAME = "report.html"
STATE = "run-state.json"
ANSWER_FILE = "answers.jsonl"
SMOOTHED = 0.02  # of the run: the width of the moving mean

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
# (title, names of the values, options of line_chart)
_CHARTS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("Learning rate", ("Learning Rate", "Learning Rate ("), {"from_zero": True}),
    ("Gradient norm", ("Gradient Norm",), {}),
    ("Tokens a second", ("Tokens/s",), {"from_zero": True}),
    ("MFU: useful FLOPs of what the device could do", ("MFU",), {"percent": True}),
    ("TFLOP/s, useful, a device", ("TFLOP/s",), {"from_zero": True}),
    ("Step time and data wait, seconds", ("Step Time", "Data Wait"), {"from_zero": True}),
    ("Memory, GiB", ("Device Memory", "Host Memory"), {"from_zero": True}),
    ("Share of positions filled, and learned", ("Filled Share", "Label Share"), {"percent": True}),
)
SCORES = 4  # drawings of scores


def write_run_report(
    run_dir: Path,
    *,
    history: History | None = None,
    skips: SkipReasons | None = None,
    tiles: Sequence[tuple[str, str]] = (),
    sections: Sequence[str] = (),
) -> Path:
    """Write `run_dir`/report.html anew, whole or not at all, and return its path.

    history, skips: what a running trainer has in memory already; read from the folder when they are not given. tiles:
    (number, what it is) to stand first. sections: HTML to stand between the curves and the troubles.

    Raises ValueError when there is no config.yaml, and for a log that is not one; OSError when it cannot be written.
    """
    config_file = run_dir / "config.yaml"
    if not config_file.is_file():
        raise ValueError(f"{run_dir} is not a run folder: it has no config.yaml")
    config_text = config_file.read_text(encoding="utf-8")
    config = yaml.safe_load(config_text) or {}
    history = read_history(run_dir) if history is None else history
    state = _json(run_dir / STATE) or {}
    card = _json(run_dir / "reproducibility.json")
    spikes, num_spikes = newest_rows(run_dir / "spikes.jsonl", SPIKES)
    skipped_steps, num_skipped_steps = newest_rows(run_dir / "skipped-steps.jsonl", SPIKES)
    answers, _ = newest_rows(run_dir / ANSWER_FILE, ANSWERS)
    text = _template().render(
        run_id=run_dir.name,
        state=state,
        state_text=_state_text(state),
        tiles=[*tiles, *_tiles(history, state)],
        charts={"loss": _loss_chart(history, [row["step"] for row in spikes])},
        stride=history.curve("Loss (Raw)").stride,
        small=_small_charts(history),
        validation=validation_rows(history),
        answers=[row for row in answers if row["step"] == answers[-1]["step"]],
        sections=sections,
        reasons=(skips or SkipReasons(run_dir / "skipped.jsonl")).read(),
        shown_reasons=REASONS,
        skipped_steps=skipped_steps[::-1],
        num_skipped_steps=num_skipped_steps,
        spikes=spikes[::-1],
        num_spikes=num_spikes,
        settings=_settings(config),
        config_text=config_text,
        card=card_rows(card),
        card_text=json.dumps(card["starts"][-1], indent=2) if card else "",
    )
    return write_whole(run_dir / NAME, text)


def write_whole(path: Path, text: str) -> Path:
    """Write a text file so that a reader sees the one before or this one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return path


@lru_cache(maxsize=1)
def _template() -> Template:
    import jinja2

    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(PAGE)


def _loss_chart(history: History, spikes: Sequence[int]) -> str:
    raw, validation = history.curve("Loss (Raw)"), history.curve("Validation Loss")
    lines = [Line("loss of a step", raw, "faint", band=True), Line("moving mean", smoothed(raw, SMOOTHED), "one")]
    return line_chart([*lines, Line("validation", validation, "two", dots=True)] if raw.steps else [], marks=spikes)


def _small_charts(history: History) -> list[tuple[str, str]]:
    """(title, drawing) of everything but the loss; a drawing is "" where nothing was measured."""
    charts = [(title, _chart(history, _with_groups(history, names), options)) for title, names, options in _CHARTS]
    charts.append(("Validation loss by data", _chart(history, validation_parts(history), {}, dots=True)))
    scores: dict[str, dict[str, str]] = {}
    for name in history.curves:
        if name.startswith("Evaluation "):
            score, _, data = name.removeprefix("Evaluation ").partition(" (")
            scores.setdefault(score, {})[data.rstrip(")")] = name
    # The dataset's own measure comes after the general ones, and says the most.
    for score, names in list(scores.items())[::-1][:SCORES]:
        charts.append((f"During training: {score}", _chart(history, names, {"from_zero": True}, dots=True)))
    return charts


def _with_groups(history: History, names: Sequence[str]) -> dict[str, str]:
    """Names of curves by what they are called; a name that ends in "(" stands for all that begin with it."""
    found = {}
    for name in names:
        if name.endswith("("):
            found |= {n.removeprefix(name).rstrip(")"): n for n in history.curves if n.startswith(name)}
        else:
            found[name.lower()] = name
    return found


def _chart(history: History, names: Mapping[str, str], options: Mapping[str, Any], dots: bool = False) -> str:
    shown = list(zip(names.items(), COLOURS, strict=False))
    lines = [Line(text, history.curve(name), colour, dots=dots) for (text, name), colour in shown]
    return line_chart(lines, width=HALF, height=200, **options)


def _tiles(history: History, state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(number, what it is), the few that a reader looks for first."""
    tiles = []
    validation, loss = history.last("Validation Loss"), history.last("Loss")
    if validation is not None:
        tiles.append((f"{validation:.4f}", "validation loss, newest"))
    if loss is not None:
        tiles.append((f"{loss:.4f}", "loss, mean of the last 128 steps"))
    if history.step:
        tiles.append((f"{history.step:,}", "optimizer steps"))
    if state.get("state") == "running" and state.get("seconds_left") is not None:
        tiles.append((_duration(state["seconds_left"]), "left, about"))
    for name, text in (("Tokens/s", "tokens a second"), ("TFLOP/s", "useful TFLOP/s a device")):
        rate = _recent(history, name)
        if rate is not None:
            tiles.append((number_text(float(f"{rate:.3g}")), text))
    for name, text in (("MFU", "MFU"), ("Data Wait Share", "of a step waits for data")):
        share = _recent(history, name)
        if share is not None:
            tiles.append((f"{share:.1%}", text))
    memory = history.last("Device Memory")
    if memory is not None:
        tiles.append((f"{memory:.1f} GiB", "device memory, highest"))
    return tiles


def _recent(history: History, name: str) -> float | None:
    """Mean of the newest tenth of a curve: one step says little about a rate or a wait."""
    means = history.curve(name).means
    recent = means[-max(1, len(means) // 10) :]
    return sum(recent) / len(recent) if recent else None


def _state_text(state: Mapping[str, Any]) -> str:
    texts = {"running": "running", "finished": "finished", "stopped": "stopped", "failed": "failed"}
    return texts.get(state.get("state", ""), "unknown")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


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


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return None  # of an older version, or damaged: the page does without
