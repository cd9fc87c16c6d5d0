"""`scripts/evaluate.py` below its command line: rows in, predictions.jsonl, skipped.jsonl and metrics.json out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prismatic.conf.run import EvaluateConfig
from prismatic.data.annotations import load_records
from prismatic.data.media import reader_of
from prismatic.data.watch import ReadingWatch
from prismatic.eval.metrics import METRICS
from prismatic.eval.report import find_run_dir, write_report
from prismatic.eval.rows import Question, Read, media_as_json, read_batches, shown_question, with_num_frames
from prismatic.eval.tasks import TASKS, Answerer, Row
from prismatic.types import Record, Skip
from prismatic.video.decode import DECODERS
from prismatic.video.sampling import SAMPLERS

log = logging.getLogger(__name__)

LISTED_SKIPS = 100  # metrics.json lists no more than this; skipped.jsonl lists all


def rows_to_answer(cfg: EvaluateConfig) -> list[Record]:
    """The rows that `evaluate` will be asked about. Everything that can be wrong with the input is said here, before
    a model is loaded: raises ValueError for settings, an unknown task or metric, and rows that the task cannot use.
    """
    cfg.validate()
    task = TASKS.get(cfg.task)
    SAMPLERS.get(cfg.dataset.sampler)
    DECODERS.get(cfg.dataset.decoder)
    if cfg.dataset.metric:
        METRICS.get(cfg.dataset.metric)
    annotations, media_root = cfg.dataset.components("finetune")
    # Several files are several weaves of the same clips, one an epoch: the first one holds them all.
    records = list(load_records(annotations[0], media_root)[: cfg.limit])
    if cfg.num_frames is not None:
        records = [with_num_frames(record, cfg.num_frames) for record in records]
    for record in records:
        task.check(record)
    cfg.output_dir.mkdir(parents=True, exist_ok=True)
    return records


def evaluate(cfg: EvaluateConfig, vlm: Answerer, records: Sequence[Record] | None = None) -> dict[str, Any]:
    """Answer rows with the task cfg.task and score the answers; what metrics.json holds is returned.

    records: from `rows_to_answer(cfg)`, which is called when they are not given. Writes
    cfg.output_dir/predictions.jsonl ({id, media, num_frames, question, prediction, reference}; num_frames counts the
    frames of all the row's media), skipped.jsonl and metrics.json, each whole or not at all. When output_dir lies
    inside a run folder, that folder's report.html is written anew.

    Raises ValueError for a broken file (--dataset.on_error raise), and for more than --dataset.max_skipped_share of
    them (skip).
    """
    records = rows_to_answer(cfg) if records is None else records
    annotations, media_root = cfg.dataset.components("finetune")
    metric = METRICS.get(cfg.dataset.metric) if cfg.dataset.metric else None
    vlm.eval()
    started = time.monotonic()
    rows, skipped = _answer_all(cfg, vlm, records, media_root)
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    metrics: dict[str, Any] = {
        "task": cfg.task,
        "dataset_id": cfg.dataset.dataset_id,
        "annotations": str(annotations[0]),
        "media_root": str(media_root),
        "model_path": cfg.model_path,
        "num_frames": cfg.num_frames or vlm.num_frames,
        "num_rows": len(records),
        "num_scored": len(rows),
        "num_skipped": len(skipped),
        "skipped": [{"id": s.id, "source": s.source, "reason": s.reason} for s in skipped[:LISTED_SKIPS]],
        "seconds": round(time.monotonic() - started, 3),
        "metric": cfg.dataset.metric,
        **TASKS.get(cfg.task).score(rows),
        **(metric.score(predictions, references) if metric else {}),
    }
    _write(cfg.output_dir / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _write(cfg.output_dir / "skipped.jsonl", "".join(json.dumps(asdict(skip)) + "\n" for skip in skipped))
    _write(cfg.output_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    run_dir = find_run_dir(cfg.output_dir)
    if run_dir is not None:
        log.info("report: %s", write_report(run_dir))
    return metrics


def _reader(cfg: EvaluateConfig, vlm: Answerer) -> Read:
    """Reads media as training did, without augmentations."""
    num_frames = cfg.num_frames or vlm.num_frames
    return reader_of(cfg.dataset, num_frames, vlm.vision_backbone.image_spec, vlm.resize_strategy).read


def _answer_all(
    cfg: EvaluateConfig, vlm: Answerer, records: Sequence[Record], media_root: Path
) -> tuple[list[Row], list[Skip]]:
    """Answered rows in the order of the records, and what could not be read."""
    task = TASKS.get(cfg.task)
    options = {"max_new_tokens": cfg.max_new_tokens, "num_beams": cfg.num_beams}
    rows: dict[int, Row] = {}
    skipped: list[Skip] = []
    batches = read_batches(
        records,
        _reader(cfg, vlm),
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        num_workers=cfg.dataset.num_workers,
        watch=ReadingWatch(cfg.dataset.decode_timeout),
    )
    with tqdm(total=len(records), unit="row", desc=f"evaluate {cfg.task}") as progress:
        for batch in batches:
            skipped += [row for row in batch if isinstance(row, Skip)]
            _check_skips(cfg, skipped, len(records))
            questions = [row for row in batch if isinstance(row, Question)]
            answers = task.answer(vlm, questions, options) if questions else []
            rows |= {q.index: _row(q, answer, media_root) for q, answer in zip(questions, answers, strict=True)}
            progress.update(len(batch))
    return [rows[index] for index in sorted(rows)], sorted(skipped, key=lambda skip: skip.index)


def _row(question: Question, answer: Row, media_root: Path) -> Row:
    return {
        "id": question.record.id,
        "media": media_as_json(question.record, media_root),
        "num_frames": question.num_frames,
        "question": shown_question(question.text),
        "prediction": answer["prediction"],
        "reference": question.reference,
        **answer,
    }


def _check_skips(cfg: EvaluateConfig, skipped: Sequence[Skip], num_rows: int) -> None:
    if not skipped:
        return
    last = skipped[-1]
    if cfg.dataset.on_error == "raise":
        raise ValueError(
            f"{skipped[0].source}: {skipped[0].reason}; pass --dataset.on_error skip to go on without such rows"
        )
    if len(skipped) > cfg.dataset.max_skipped_share * num_rows:
        raise ValueError(
            f"{len(skipped)} of {num_rows} rows have media that cannot be read, more than --dataset.max_skipped_share "
            f"{cfg.dataset.max_skipped_share}; the last: {last.source}: {last.reason}"
        )


def _write(path: Path, text: str) -> None:
    """Whole or not at all: an interrupted evaluation leaves the files of the one before it."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
