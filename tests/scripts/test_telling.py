"""Whole runs: broken videos on two ranks, answers while training on sharded weights, and what the folder then tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import prismatic
from prismatic.data.annotations import load_records
from tests.scripts.conftest import TINY, Script

ROWS, STEPS = 20, 5


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def broken_shapes(data_root: Path) -> Path:
    """20 rows of which one (5 %) is a video cut short, and validation rows of one and of two clips."""
    folder = data_root / "moving-shapes"
    rows = json.loads((folder / "train.json").read_text())[:ROWS]
    whole = folder / rows[11]["videos"][0]
    (folder / "cut.webm").write_bytes(whole.read_bytes()[:300])
    rows[11]["videos"] = ["cut.webm"]
    (folder / "broken.json").write_text(json.dumps(rows))
    val = json.loads((folder / "val.json").read_text())
    pair = {**val[0], "id": "pair", "videos": [*val[0]["videos"], *val[1]["videos"]]}
    pair["conversations"] = [{"from": "human", "value": "Describe."}, val[0]["conversations"][1]]
    (folder / "mixed.json").write_text(json.dumps([*val[:3], pair]))
    return data_root


def _flags(root: Path, runs: Path) -> list[str]:
    mixed = {"type": "moving-shapes-val", "dataset_root_dir": str(root), "num_workers": 0}
    mixed["finetune_stage_components"] = ["moving-shapes/mixed.json", "moving-shapes"]
    return [
        *(*TINY, "--dataset.type", "moving-shapes", "--dataset.dataset_root_dir", str(root)),
        *("--dataset.finetune_stage_components", '["moving-shapes/broken.json", "moving-shapes"]'),
        *("--dataset.on_error", "skip", "--dataset.max_skipped_share", "0.2"),
        *("--val_datasets", json.dumps({"mixed": mixed}), "--eval_task", "caption", "--eval_examples", "4"),
        *("--eval_max_new_tokens", "12", "--best_metric", "rouge_l", "--peak_tflops", "0.1"),
        *("--model.finetune_max_steps", str(STEPS), "--run_root_dir", str(runs), "--run_id", "run"),
    ]


def test_broken_videos_and_answers_on_two_ranks(broken_shapes: Path, tmp_path: Path, call: Script) -> None:
    done = call("pretrain.py", *_flags(broken_shapes, tmp_path), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    rows = _rows(run / "run.jsonl")
    steps = [row for row in rows if "Full-finetune/Loss" in row]
    assert [row["Full-finetune/Step"] for row in steps] == list(range(1, STEPS + 1))
    (skip,) = _rows(run / "skipped.jsonl")
    assert "broken.json, row 12" in skip["source"] and "cut.webm" in skip["reason"]
    assert steps[-1]["Full-finetune/Skipped"] == 1
    for key in ("MFU", "TFLOP/s", "Filled Share", "Label Share", "Host Memory", "Data Wait Share", "Examples/s"):
        assert steps[-1][f"Full-finetune/{key}"] > 0, key
    assert steps[-1]["Full-finetune/MFU"] == pytest.approx(steps[-1]["Full-finetune/TFLOP/s"] / 0.1)

    (validation,) = [row for row in rows if "Full-finetune/Validation Loss" in row]
    one, two = (validation[f"Full-finetune/Validation Loss (mixed, L={clips})"] for clips in (1, 2))
    assert min(one, two) < validation["Full-finetune/Validation Loss"] < max(one, two)
    (scores,) = [row for row in rows if "Full-finetune/Evaluation rouge_l (mixed)" in row]
    assert f"caption on mixed: exact_match {scores['Full-finetune/Evaluation exact_match (mixed)']:.4f}" in done.stderr

    answers = {row["id"]: row["prediction"] for row in _rows(run / "answers.jsonl")}
    assert len(answers) == 4 and "pair" in answers
    vlm = prismatic.load(run).eval()
    records = load_records(broken_shapes / "moving-shapes" / "mixed.json", broken_shapes / "moving-shapes")
    for record in records:
        builder = vlm.get_prompt_builder()
        builder.add_turn("human", record.turns[0].text)
        clips = [vlm.encode_clips(medium.paths[0])[0] for medium in record.media]
        # What two ranks with half of the weights each said is what the model says.
        assert vlm.generate(clips, builder.get_prompt(), max_new_tokens=12) == answers[record.id]

    page = (run / "report.html").read_text()
    assert ">finished</span>" in page and "cut.webm" not in page and "Validation Loss (mixed, L=2)" in page
    (start,) = json.loads((run / "reproducibility.json").read_text())["starts"]
    assert start["world_size"] == 2 and start["tokenizer_sha256"] and start["template_sha256"]
    assert {file["path"].rpartition("/")[2] for data in start["data"].values() for file in data["files"]} == {
        "broken.json",
        "mixed.json",
    }


def test_wrong_choices_are_named_before_anything_is_built(shapes: tuple[str, ...], refused, tmp_path: Path) -> None:
    base = (*TINY, *shapes, "--run_root_dir", str(tmp_path))
    val = ("--val_dataset.type", "moving-shapes-val", *("--val_dataset.dataset_root_dir", shapes[3]))
    assert "pass --val_dataset.type" in refused("pretrain.py", *base, "--eval_task", "caption")
    assert "for --eval_task; did you mean 'caption'?" in refused("pretrain.py", *base, *val, "--eval_task", "captoin")
    assert "pass --eval_task caption or choice" in refused("pretrain.py", *base, *val, "--best_metric", "accuracy")
    text = refused("pretrain.py", *base, *val, "--eval_task", "caption", "--best_metric", "accuracy")
    assert "--best_metric accuracy is no score of moving-shapes-val; there are validation_loss, exact_match" in text
    assert "--profile takes the first and the last step" in refused("pretrain.py", *base, "--profile", "[5,3]")
    assert "unknown dataset 'nothing'" in refused("pretrain.py", *base, "--val_datasets", '["nothing"]')
    assert "--dataset.decode_timeout" in refused("pretrain.py", *base, "--dataset.decode_timeout", "-1")
