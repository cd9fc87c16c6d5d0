"""evaluate(): what is asked, what is written, and what happens to broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prismatic.conf import cli
from prismatic.conf.run import EvaluateConfig
from prismatic.data.media import MediaReader
from prismatic.eval.evaluate import evaluate, rows_to_answer
from prismatic.eval.tasks import TASKS
from tests.eval.shapes import NUM_VAL, StandIn, render_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    render_clips(root)
    return root


def _cfg(data: Path, out: Path, *args: str) -> EvaluateConfig:
    fixed = ["--model_path", "run", "--dataset.type", "moving-shapes-val", "--dataset.dataset_root_dir", str(data)]
    return cli.parse(EvaluateConfig, [*fixed, "--output_dir", str(out), "--batch_size", "4", *args])


def _rows(out: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def _annotations(data: Path, name: str, rows: list[dict[str, Any]]) -> list[str]:
    (data / name).write_text(json.dumps(rows))
    return ["--dataset.finetune_stage_components", json.dumps([name, "moving-shapes"])]


def _row(media: dict[str, Any], question: str = "What?", answer: str = "A cat.", row_id: str = "x") -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": row_id, **media, "conversations": said}


def test_every_row_is_answered_in_order_and_written(data: Path, tmp_path: Path) -> None:
    vlm = StandIn()
    metrics = evaluate(_cfg(data, tmp_path, "--num_beams", "2"), vlm)
    truth = json.loads((data / "moving-shapes/val.json").read_text())
    rows = _rows(tmp_path)
    assert [r["id"] for r in rows] == [t["id"] for t in truth]
    assert [r["reference"] for r in rows] == [t["conversations"][1]["value"] for t in truth]
    assert [r["media"] for r in rows] == [t["videos"] for t in truth]
    first = rows[0]
    assert list(first)[:6] == ["id", "media", "num_frames", "question", "prediction", "reference"]
    assert (first["num_frames"], first["prediction"]) == (4, "frames [4]")
    assert first["question"] == "Describe what is happening in the video."
    assert [len(prompts) for prompts, _ in vlm.calls] == [4, NUM_VAL - 4]
    assert vlm.calls[0][1] == {"do_sample": False, "max_new_tokens": 64, "num_beams": 2}
    assert vlm.calls[0][0][0] == "human: <video>\nDescribe what is happening in the video."
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["num_rows"], metrics["num_scored"], metrics["num_skipped"]) == (NUM_VAL, NUM_VAL, 0)
    assert set(metrics["attributes"]) == {"shape", "colour", "size", "direction", "event"}
    assert metrics["attribute_accuracy"] == 0.0
    assert _rows(tmp_path, "skipped.jsonl") == []
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_num_frames_and_limit(data: Path, tmp_path: Path, workers: str) -> None:
    cfg = _cfg(data, tmp_path, "--num_frames", "1", "--limit", "3", "--dataset.num_workers", workers)
    metrics = evaluate(cfg, StandIn(num_frames=1))
    assert metrics["num_frames"] == 1
    assert [r["prediction"] for r in _rows(tmp_path)] == ["frames [1]"] * 3


def test_rows_may_ask_for_frames_of_their_own_and_the_flag_overrides_them(data: Path, tmp_path: Path) -> None:
    videos = json.loads((data / "moving-shapes/val.json").read_text())
    two = [videos[0]["videos"][0], videos[1]["videos"][0]]
    rows = [_row({"videos": two, "num_frames_per_video": 3}), _row({}, question="And now?")]
    args = [*_annotations(data, "woven.json", rows), "--dataset.metric", "null"]
    metrics = evaluate(_cfg(data, tmp_path, *args), StandIn())
    assert [r["prediction"] for r in _rows(tmp_path)] == ["frames [3, 3]", "frames []"]
    assert _rows(tmp_path)[0]["num_frames"] == 6
    assert "attributes" not in metrics
    evaluate(_cfg(data, tmp_path, *args, "--num_frames", "2"), StandIn(2))
    assert _rows(tmp_path)[0]["prediction"] == "frames [2, 2]"


def test_listed_frames_are_thinned_out_evenly(data: Path, tmp_path: Path) -> None:
    from PIL import Image

    names = [f"frame{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (i * 50,) * 3).save(data / "moving-shapes" / name)
    args = [*_annotations(data, "frames.json", [_row({"frames": names})]), "--dataset.metric", "null"]
    evaluate(_cfg(data, tmp_path, *args), StandIn())
    assert _rows(tmp_path)[0]["prediction"] == "frames [5]"
    evaluate(_cfg(data, tmp_path, *args, "--num_frames", "3"), StandIn(3))
    row = _rows(tmp_path)[0]
    assert row["media"] == [["frame0.png", "frame2.png", "frame4.png"]]
    assert row["prediction"] == "frames [3]"


def test_choice(data: Path, tmp_path: Path) -> None:
    videos = {"videos": json.loads((data / "moving-shapes/val.json").read_text())[0]["videos"]}
    question = "<video>\nWhat?\n(A) a cat\n(B) a dog\n(C) soup"
    rows = [_row(videos, question, answer) for answer in ("B", "a cat", "(B)", "C. soup")]
    args = [*_annotations(data, "choice.json", rows), "--dataset.metric", "null", "--task", "choice"]
    metrics = evaluate(_cfg(data, tmp_path, *args), StandIn(likeliest=1))
    assert (metrics["accuracy"], metrics["chance"]) == (0.5, pytest.approx(1 / 3))
    row = _rows(tmp_path)[1]
    assert (row["prediction"], row["correct_option"], row["reference"]) == ("B", "A", "a cat")
    assert row["likelihoods"] == {"A": 0.05, "B": 0.9, "C": 0.05}


def test_open_answers_are_compared_normalised(data: Path, tmp_path: Path) -> None:
    rows = [_row({}, answer="Frames []"), _row({}, answer="no")]
    args = [*_annotations(data, "open.json", rows), "--dataset.metric", "null", "--task", "open"]
    assert evaluate(_cfg(data, tmp_path, *args), StandIn())["accuracy"] == 0.5


def test_broken_files(data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "moving-shapes/val.json").read_text())
    (data / "moving-shapes/broken.mp4").write_text("no video at all")
    broken = [_row({"videos": [name]}, row_id=name) for name in ("broken.mp4", "gone.mp4")]
    args = _annotations(data, "broken.json", [rows[0], *broken, rows[1]])
    with pytest.raises(ValueError, match=r"broken.json, row 2: .*broken.mp4.*--dataset.on_error skip"):
        evaluate(_cfg(data, tmp_path, *args), StandIn())
    assert not (tmp_path / "metrics.json").exists()
    skip = [*args, "--dataset.on_error", "skip"]
    with pytest.raises(ValueError, match="2 of 4 rows have media that cannot be read"):
        evaluate(_cfg(data, tmp_path, *skip), StandIn())
    metrics = evaluate(_cfg(data, tmp_path, *skip, "--dataset.max_skipped_share", "0.5"), StandIn())
    assert (metrics["num_rows"], metrics["num_scored"], metrics["num_skipped"]) == (4, 2, 2)
    assert [s["id"] for s in metrics["skipped"]] == ["broken.mp4", "gone.mp4"]
    assert "no such file" in metrics["skipped"][1]["reason"]
    assert [s["index"] for s in _rows(tmp_path, "skipped.jsonl")] == [1, 2]
    assert [r["id"] for r in _rows(tmp_path)] == [rows[0]["id"], rows[1]["id"]]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--task", "captions"], "did you mean 'caption'"),
        (["--dataset.metric", "moving"], "unknown metric 'moving'"),
        (["--dataset.sampler", "unifrom"], "did you mean 'uniform'"),
        (["--dataset.decoder", "py"], "unknown decoder"),
        (["--num_frames", "0"], "--num_frames must be at least 1"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--model_path", ""], "--model_path is needed"),
        (["--task", "choice"], r"val.json, row 1: --task choice needs at least two options"),
        (["--dataset.finetune_stage_components", '["gone.json", ""]'], "gone.json"),
    ],
)
def test_bad_input_is_said_before_a_model_is_loaded(data: Path, tmp_path: Path, args: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rows_to_answer(_cfg(data, tmp_path, *args))


def test_a_row_without_an_answer_is_named(data: Path, tmp_path: Path) -> None:
    row = _row({})
    row["conversations"].pop()
    with pytest.raises(ValueError, match=r"row 1: evaluation needs a human turn and a gpt turn"):
        rows_to_answer(_cfg(data, tmp_path, *_annotations(data, "asked.json", [row])))


def test_a_choice_whose_answer_is_no_option_is_named(data: Path, tmp_path: Path) -> None:
    args = _annotations(data, "none.json", [_row({}, "What?\nA. x\nB. y", "z")])
    with pytest.raises(ValueError, match=r"row 1: the reference answer 'z' is none of the options"):
        rows_to_answer(_cfg(data, tmp_path, *args, "--task", "choice"))


def test_an_evaluation_inside_a_run_folder_writes_its_report(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("seed: 7\n")
    evaluate(_cfg(data, run_dir / "evaluation", "--limit", "2"), StandIn())
    assert "frames [4]" in (run_dir / "report.html").read_text()
    evaluate(_cfg(data, run_dir / "evaluation-one-frame", "--limit", "2", "--num_frames", "1"), StandIn(1))
    assert "1 frame a video" in (run_dir / "report.html").read_text()


def test_tasks_are_those_of_the_contract() -> None:
    assert {"caption", "choice", "open"} <= set(TASKS.names())


@pytest.mark.parametrize(("sampler", "workers"), [("uniform", "0"), ("uniform", "2"), ("random", "0")])
def test_rows_about_one_clip_are_asked_together_and_it_is_read_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, workers: str
) -> None:
    videos = [row["videos"] for row in json.loads((data / "moving-shapes/val.json").read_text())]
    asked = [(0, "Short?"), (1, "A longer one, about the other clip?"), (0, "What, and why, and where, and when?")]
    asked += [(2, "x?"), (1, "y?"), (0, "z?")]
    rows = [_row({"videos": videos[v]}, question=q, row_id=str(i)) for i, (v, q) in enumerate(asked)]
    vlm, opened, read = StandIn(), tmp_path / "opened", MediaReader.read

    def noted(*args: Any) -> torch.Tensor:
        with opened.open("a") as file:  # a reading process may be another one
            file.write(f"{args[1].paths[0]}\n")
        return read(*args)

    monkeypatch.setattr(MediaReader, "read", noted)
    args = [*_annotations(data, "several.json", rows), "--dataset.metric", "null", "--dataset.sampler", sampler]
    args += ["--dataset.num_workers", workers]
    evaluate(_cfg(data, tmp_path, *args), vlm)
    assert [row["id"] for row in _rows(tmp_path)] == [str(i) for i in range(6)]
    assert [row["question"] for row in _rows(tmp_path)] == [question for _, question in asked]
    prompts = [prompt.rpartition("\n")[2].removeprefix("human: ") for batch, _ in vlm.calls for prompt in batch]
    assert [prompts.index(q) // 3 for v, q in asked if v == 0] == [0, 0, 0]
    # Four rows about two clips, then two rows about two; frames taken at random are each row's own.
    assert len(opened.read_text().splitlines()) == (6 if sampler == "random" else 4)
