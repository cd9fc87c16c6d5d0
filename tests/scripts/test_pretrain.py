"""`scripts/pretrain.py` as a user runs it: what a run leaves, how it goes on after a kill, several ranks, odd data."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.scripts.conftest import TINY, Script, command, metric_rows, script_environment

LOSS = "Full-finetune/Loss (Raw)"


def _args(shapes: tuple[str, ...], runs: Path, steps: int, *more: str) -> tuple[str, ...]:
    return (*TINY, *shapes, "--model.finetune_max_steps", str(steps), "--run_root_dir", str(runs), *more)


def test_a_run_leaves_what_the_contract_says(trained: Path) -> None:
    names = sorted(path.name for path in trained.iterdir())
    for name in ("config.yaml", "config.json", "run-metrics.jsonl", "trained.jsonl", "checkpoints", "llm_backbone"):
        assert name in names
    checkpoints = {path.name: path for path in (trained / "checkpoints").iterdir()}
    assert {"step-000004", "step-000008", "latest-checkpoint.safetensors"} <= checkpoints.keys()
    last = [name for name in checkpoints if re.fullmatch(r"step-000008-epoch-\d\d-loss=\d+\.\d{4}\.safetensors", name)]
    assert len(last) == 1
    latest = checkpoints["latest-checkpoint.safetensors"]
    assert latest.is_symlink() and os.readlink(latest) == last[0]
    assert {key.split(".")[0] for key in load_file(latest)} == {"vision_backbone", "projector", "llm_backbone"}
    rows = metric_rows(trained)
    assert [row["Full-finetune/Step"] for row in rows] == list(range(1, 9))
    for key in ("Loss", "Loss (Raw)", "Learning Rate", "Step Time"):
        assert all(f"Full-finetune/{key}" in row for row in rows)
    assert json.loads((trained / "run-metrics.jsonl").read_text().splitlines()[0])["run_id"] == "trained"


def test_kill_9_then_resume_equals_an_uninterrupted_run(trained: Path, shapes: tuple[str, ...], tmp_path: Path) -> None:
    """The same eight steps, killed after the checkpoint of step 4: weights and losses are equal bit for bit."""
    args = _args(shapes, tmp_path, 8, "--checkpoint_interval", "4", "--keep_checkpoints", "9", "--run_id", "killed")
    process = subprocess.Popen(command("pretrain.py", *args), env=script_environment(), stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoints" / "step-000004"
    deadline = time.monotonic() + 120
    while not checkpoint.is_dir() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert checkpoint.is_dir()

    again = subprocess.run(
        command("pretrain.py", *args), env=script_environment(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert "step-000004" in again.stderr or "step 4" in again.stderr, "the run does not say where it went on"
    resumed, whole = metric_rows(tmp_path / "killed"), metric_rows(trained)
    assert [row[LOSS] for row in resumed] == [row[LOSS] for row in whole]
    ours = load_file(tmp_path / "killed" / "checkpoints" / "latest-checkpoint.safetensors")
    theirs = load_file(trained / "checkpoints" / "latest-checkpoint.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)


def test_sigterm_saves_and_exits_with_zero(shapes: tuple[str, ...], tmp_path: Path) -> None:
    args = _args(shapes, tmp_path, 2000, "--run_id", "stopped", "--model.finetune_epochs", "999")
    process = subprocess.Popen(
        command("pretrain.py", *args), env=script_environment(), stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "stopped" / "stopped.jsonl"
    deadline = time.monotonic() + 120
    while (not log.exists() or len(log.read_text().splitlines()) < 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr[-2000:]
    assert "Stopped by SIGTERM after step" in stderr
    saved = sorted((tmp_path / "stopped" / "checkpoints").glob("step-*/"))
    assert saved, stderr[-2000:]
    step = int(saved[-1].name.removeprefix("step-"))
    assert step >= 3


def test_two_ranks_equal_one(trained: Path, shapes: tuple[str, ...], tmp_path: Path, call: Script) -> None:
    done = call("pretrain.py", *_args(shapes, tmp_path, 8, "--run_id", "two"), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = metric_rows(tmp_path / "two"), metric_rows(trained)
    np.testing.assert_allclose([row[LOSS] for row in two], [row[LOSS] for row in one], atol=2e-4)


def test_settings_may_not_change_under_a_run(trained: Path, shapes: tuple[str, ...], refused) -> None:
    args = _args(shapes, trained.parent, 8, "--run_id", "trained", "--model.finetune_learning_rate", "0.5")
    said = refused("pretrain.py", *args)
    assert "--model.finetune_learning_rate" in said and "--resume never" in said


def test_images_videos_frames_and_text_in_one_file(data_root: Path, tmp_path: Path, call: Script) -> None:
    rows = json.loads((data_root / "moving-shapes" / "train.json").read_text())
    media = tmp_path / "media"
    media.mkdir()
    (media / "frames").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", *(f"frames/{i}.png" for i in range(6))):
        Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)).save(media / name)

    def chat(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    clips = [row["videos"][0] for row in rows[:4]]
    for clip in clips:
        target = media / clip
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((data_root / "moving-shapes" / clip).read_bytes())
    mixed = [
        {"id": "image", "image": "a.png", "conversations": chat("<image>\nWhat is it?", "Noise.")},
        {
            "id": "frames",
            "frames": [f"frames/{i}.png" for i in range(6)],
            "conversations": chat("And now?", "More noise."),
        },
        {"id": "text", "conversations": chat("What is one and one?", "Two.")},
        {"id": "video", "video": clips[0], "conversations": chat("<video>\nWhat moves?", "A shape.")},
        {"id": "woven", "videos": clips[1:3], "num_frames_per_video": 2, "conversations": chat("Two?", "Two shapes.")},
        {
            "messages": [
                {"role": "user", "content": "<video>What moves?"},
                {"role": "assistant", "content": "A shape again."},
            ],
            "videos": [clips[3]],
        },
    ]
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    done = call(
        "pretrain.py",
        *TINY,
        *("--dataset.type", "custom", "--dataset.dataset_root_dir", str(tmp_path)),
        *("--dataset.finetune_stage_components", '["mixed.json", "media"]'),
        *("--model.finetune_global_batch_size", "6", "--model.finetune_per_device_batch_size", "6"),
        *("--model.finetune_max_steps", "3", "--run_root_dir", str(tmp_path / "runs"), "--run_id", "mixed"),
        *("--model.visual_token_layout", "inline"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [row[LOSS] for row in metric_rows(tmp_path / "runs" / "mixed")]
    assert len(losses) == 3 and all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_broken_videos_are_skipped_counted_and_listed(data_root: Path, tmp_path: Path, call: Script) -> None:
    rows = json.loads((data_root / "moving-shapes" / "train.json").read_text())
    bad = [
        {**rows[0], "id": "missing", "videos": ["videos/nowhere.mp4"]},
        {**rows[1], "id": "not-a-video", "videos": ["train.json.mp4"]},
    ]
    source = data_root / "moving-shapes"
    (source / "train.json.mp4").write_text("this is text")
    (tmp_path / "a.json").write_text(json.dumps([*rows, *bad]))
    flags = (
        *TINY,
        *("--dataset.type", "custom", "--dataset.dataset_root_dir", "."),
        *("--dataset.finetune_stage_components", json.dumps([str(tmp_path / "a.json"), str(source)])),
        *("--model.finetune_epochs", "1", "--run_root_dir", str(tmp_path)),
    )
    stopped = call("pretrain.py", *flags, "--run_id", "raise")
    assert stopped.returncode == 2
    assert "error: " in stopped.stderr and "--dataset.on_error skip" in stopped.stderr
    gone_on = call(
        "pretrain.py", *flags, "--run_id", "skip", "--dataset.on_error", "skip", "--dataset.max_skipped_share", "0.2"
    )
    assert gone_on.returncode == 0, gone_on.stderr[-3000:]
    listed = [json.loads(line) for line in (tmp_path / "skip" / "skipped.jsonl").read_text().splitlines()]
    assert {row["id"] for row in listed} == {"missing", "not-a-video"}
    assert all(row["reason"] for row in listed)
    too_many = call("pretrain.py", *flags, "--run_id", "many", "--dataset.on_error", "skip")
    assert too_many.returncode == 2
    assert "--dataset.max_skipped_share" in too_many.stderr


def test_dry_run_prints_sizes_and_leaves_nothing(shapes: tuple[str, ...], tmp_path: Path, call: Script) -> None:
    done = call("pretrain.py", *_args(shapes, tmp_path, 8, "--dry_run", "true"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "num_frames: 4" in done.stdout and "projector" in done.stdout
    assert re.search(r"a video +4 frames = \d+ visual tokens", done.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["fsdp-full-shard", "fsdp-shard-grad-op", "fsdp-hybrid", "ddp"])
def test_every_strategy_computes_the_same(
    strategy: str, trained: Path, shapes: tuple[str, ...], tmp_path: Path, call: Script
) -> None:
    args = _args(shapes, tmp_path, 8, "--run_id", strategy, "--model.finetune_train_strategy", strategy)
    done = call("pretrain.py", *args)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = metric_rows(tmp_path / strategy), metric_rows(trained)
    np.testing.assert_allclose([row[LOSS] for row in ours], [row[LOSS] for row in theirs], atol=1e-5)
