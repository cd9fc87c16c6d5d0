"""The card of a run: what it holds, that a start adds and changes nothing, and what it costs for large files."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prismatic.conf.data import DatasetConfig
from prismatic.train import card
from prismatic.train.trainer import Trainer


def _starts(run: Trainer) -> list[dict]:
    return json.loads((run.run_dir / card.NAME).read_text())["starts"]


def test_a_start_and_a_resume(trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    monkeypatch.setattr("sys.argv", ["scripts/pretrain.py", "--hf_token", token])
    rows = tmp_path / "rows.json"
    rows.write_text("[]")
    data = DatasetConfig.get_choice_class("custom")(
        dataset_root_dir=tmp_path, finetune_stage_components=(Path("rows.json"), Path("media"))
    )
    first = trainer(dataset=data)
    first.train_loader.events = {3: [15]}
    assert first.fit() is signal.SIGTERM
    (start,) = _starts(first)
    assert start["from_step"] == 0 and start["resumed_from"] is None and start["world_size"] == 1
    assert start["versions"]["torch"] == torch.__version__ and start["versions"]["python"]
    assert token not in json.dumps(start) and "hf_..." in start["command"][-1]
    assert start["config"]["seed"] == first.cfg.seed and "hf_token" not in start["config"]
    (file,) = start["data"]["dataset"]["files"]
    assert file["sha256"] == hashlib.sha256(b"[]").hexdigest() and file["method"] == "whole"
    rows.write_text("[1]")
    assert trainer(dataset=data).fit() is None
    again = _starts(first)
    assert again[0] == start and again[1]["from_step"] == 3 and "step-000003" in again[1]["resumed_from"]
    assert again[1]["data"]["dataset"]["files"][0]["sha256"] != file["sha256"]
    assert again[1]["config_sha256"] == start["config_sha256"]


def test_weaving_tells_its_clusters(tmp_path: Path) -> None:
    (tmp_path / "clusters.json").write_text('[{"video_id": "a", "caption": "", "cluster": "0"}]')
    data = DatasetConfig.get_choice_class("custom")(
        dataset_root_dir=tmp_path, finetune_stage_components=(Path("c.parquet"), Path("m"))
    )
    data.weave.videos_per_example, data.weave.method, data.weave.clusters = 2, "visual", Path("clusters.json")
    told = card._data(data, "finetune")
    assert told["weave"]["clusters"][0]["sha256"] == card.file_hash(tmp_path / "clusters.json")["sha256"]
    assert told["weave"]["method"] == "visual" and told["files"][0]["problem"] == "No such file or directory"


def test_large_files_are_sampled_in_no_time(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:  # 6 GB with holes: nothing is written
        file.truncate(6 << 30)
    began = time.process_time()
    empty = card.file_hash(path)
    assert time.process_time() - began < 2 and empty["method"] == "sampled" and empty["bytes"] == 6 << 30
    for place in (0, (6 << 30) - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        changed = card.file_hash(path)["sha256"]
        assert changed != empty["sha256"]
        empty["sha256"] = changed


def test_state_of_a_checkout(tmp_path: Path) -> None:
    assert card.git_state(tmp_path) is None

    def git(*args: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        subprocess.run(["git", *names, *args], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "one")
    state = card.git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "a.py").write_text("2")
    assert card.git_state(tmp_path) == {"commit": state["commit"], "dirty": True, "changed": ["a.py"]}


def test_a_damaged_card_is_kept_aside_and_a_full_disk_stops_nothing(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(model_finetune_max_steps=1)
    (run.run_dir / card.NAME).write_text('{"starts": [')
    run.fit()
    assert len(_starts(run)) == 1 and (run.run_dir / f"{card.NAME}.unreadable").exists()

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert card.write_card(run, None) is None and "No space left" in caplog.text


def test_tokenizer_and_template_have_hashes_of_their_own(tmp_path: Path) -> None:
    from prismatic.prompting import TEMPLATES

    assert card.template_hash(None) is None and card.files_hash([]) is None
    assert card.template_hash(TEMPLATES.get("pure")) != card.template_hash(TEMPLATES.get("vicuna-v15"))
    (tmp_path / "tokenizer.json").write_text("{}")
    one = card.files_hash([tmp_path / "tokenizer.json"])
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert one != card.files_hash([tmp_path / "tokenizer.json"])
