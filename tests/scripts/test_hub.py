"""A user starts a video model from a published image model: gated files, one download, then no network at all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hub_stand_in, small_rows
from tests.hub_stand_in import TOKEN, Hub
from tests.scripts.conftest import ROOT, command, script_environment
from tests.test_hub import CHECKPOINT, LLM_WEIGHTS, MODEL_ID, VISION_WEIGHTS, publish


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The published model's repositories, the LLM's gated."""
    for registry, name, entry in small_rows.small_entries():
        monkeypatch.setitem(registry._entries, name, entry)
    publish(tmp_path / "repositories")
    with hub_stand_in.stand_in(tmp_path / "repositories") as server:
        server.gated.add(small_rows.LLAMA_REPO)
        yield server


def _run(hub: Hub, tmp_path: Path, *args: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**script_environment(), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "WANDB_MODE": "offline"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment["MY_HUB_TOKEN"] = TOKEN
    return subprocess.run(
        command("pretrain.py", *args, "--run_root_dir", str(tmp_path / "runs")),
        **{"env": environment, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300, "check": False},
    )


def _args(shapes: tuple[str, ...], run_id: str) -> tuple[str, ...]:
    return (
        *("--plugins", "small_rows_plugin", "--model.type", MODEL_ID, *shapes, "--run_id", run_id),
        *("--model.vision_backbone_id", "video-clip-vit-l-336px", "--model.num_frames", "2"),
        *("--model.init_from_model", MODEL_ID, "--model.repo_id", "TRI-ML/prismatic-vlms"),
        *("--model.finetune_max_steps", "2", "--model.finetune_global_batch_size", "2"),
        *("--model.finetune_per_device_batch_size", "2", "--dataset.num_workers", "0", "--device", "cpu"),
    )


def test_a_published_image_model_becomes_a_video_model(hub: Hub, shapes: tuple[str, ...], tmp_path: Path) -> None:
    refused = _run(hub, tmp_path, *_args(shapes, "refused"))
    assert refused.returncode == 2
    assert f"'{small_rows.LLAMA_REPO}' is gated: accept its terms" in refused.stderr and "--hf_token" in refused.stderr

    (tmp_path / ".hf_token").write_text(TOKEN + "\n")
    first = _run(hub, tmp_path, *_args(shapes, "first"), "--trackers", '["jsonl", "wandb"]')
    assert first.returncode == 0, first.stderr[-3000:]
    assert hub.downloads[CHECKPOINT] == hub.downloads[VISION_WEIGHTS] == 1 and hub.downloads[LLM_WEIGHTS] == 0

    (tmp_path / ".hf_token").unlink()
    before = dict(hub.downloads)
    linear = ("--model.arch_specifier", "no-align+linear", "--hf_token", "MY_HUB_TOKEN")
    misfit = _run(hub, tmp_path, *_args(shapes, "misfit"), *linear)
    assert misfit.returncode == 2 and dict(hub.downloads) == before, "nothing is downloaded twice"
    for said in (
        "2 missing (projector.projector.bias; projector.projector.weight)",
        "4 unexpected (projector.projector.{0,2}.bias; projector.projector.{0,2}.weight)",
    ):
        assert said in misfit.stderr

    offline = _run(hub, tmp_path, *_args(shapes, "offline"), "--hf_token", "MY_HUB_TOKEN", offline=True)
    assert offline.returncode == 0, offline.stderr[-3000:]
    said = "".join(run.stdout + run.stderr for run in (first, misfit, offline))
    files = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert any("wandb" in str(p) for p in files)
    assert TOKEN not in said and not [p for p in files if TOKEN.encode() in p.read_bytes()]
    config = json.loads((tmp_path / "runs/offline/config.json").read_text())
    assert config["hf_token"] == "MY_HUB_TOKEN" and config["model"]["num_frames"] == 2
