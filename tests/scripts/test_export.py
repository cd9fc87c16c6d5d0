"""`scripts/export.py` as a user runs it: both layouts, LoRA, uploading, and what is refused with nothing written."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.scripts.conftest import ROOT, TINY, Script

CLIP = torch.arange(4 * 50 * 70 * 3, dtype=torch.int64).reshape(4, 50, 70, 3).mul(7).to(torch.uint8)


def _answers(path: Path) -> str:
    import prismatic

    vlm = prismatic.load(path)
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", "What happens?")
    return vlm.generate(CLIP, builder.get_prompt(), max_new_tokens=16)


@pytest.fixture
def run_export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the script in this process and returns what it prints."""

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *args])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "scripts" / "export.py"), run_name="__main__")
        out, err = capsys.readouterr()
        assert caught.value.code == 0, err
        return out

    return run


def test_to_transformers(trained: Path, tmp_path: Path, call: Script) -> None:
    done = call("export.py", "--model_path", str(trained), "--output_dir", str(tmp_path / "out"), "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "verified: 2 clips" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert str(trained) not in "".join(p.read_text() for p in (tmp_path / "out").glob("*.json"))
    assert os.stat(tmp_path / "out" / "model.safetensors").st_mode & 0o044


def test_to_the_older_layout_and_back(trained: Path, tmp_path: Path, run_export) -> None:
    out = tmp_path / "older"
    out.mkdir()  # empty is as good as new
    assert "are equal" in run_export("--model_path", str(trained), "--format", "prismatic", "--output_dir", str(out))
    weights = torch.load(out / "checkpoints" / "latest-checkpoint.pt", weights_only=True)["model"]
    assert weights.keys() == {"projector", "llm_backbone", "vision_backbone"}
    assert {"projector.0.weight", "projector.2.bias"} <= weights["projector"].keys()
    assert "llm.model.embed_tokens.weight" in weights["llm_backbone"]
    assert "featurizer.blocks.0.attn.qkv.weight" in weights["vision_backbone"]
    model = json.loads((out / "config.json").read_text())["model"]
    for name in ("model_id", "vision_backbone_id", "llm_backbone_id", "arch_specifier", "image_resize_strategy"):
        assert model[name]
    assert _answers(out) == _answers(trained)


def test_lora_is_merged_on_request(shapes: tuple[str, ...], tmp_path: Path, call: Script, refused, run_export) -> None:
    pytest.importorskip("peft")
    args = ("--stage", "finetune", "--model.lora.rank", "4", "--model.finetune_max_steps", "3", "--run_id", "r")
    done = call("pretrain.py", *TINY, *shapes, *args, "--run_root_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    run, out = tmp_path / "r", tmp_path / "merged"
    for layout in ("hf", "prismatic"):
        flags = ("--model_path", str(run), "--output_dir", str(out), "--format", layout)
        assert "--merge_lora true" in refused("export.py", *flags)
        assert not out.exists()
    assert "verified" in run_export(*flags, "--merge_lora", "true")
    assert _answers(out) == _answers(run)
    half = ("--output_dir", str(tmp_path / "half"), "--dtype", "bfloat16")
    assert "are equal" in run_export("--model_path", str(run), "--format", "prismatic", "--merge_lora", "true", *half)
    assert "verified" in run_export(
        "--model_path", str(run), "--output_dir", str(tmp_path / "hf"), "--merge_lora", "true"
    )


def test_refusals(trained: Path, tmp_path: Path, refused) -> None:
    flags = ("--model_path", str(trained), "--output_dir", str(tmp_path / "out"))
    assert "--model_path is missing" in refused("export.py")
    assert "latest-checkpoint" in refused("export.py", *flags, "--model_path", str(tmp_path))
    assert "no run folder or checkpoint at" in refused("export.py", *flags, "--model_path", str(tmp_path / "no"))
    assert "--format must be hf or prismatic" in refused("export.py", *flags, "--format", "gguf")
    assert "--dtype must be" in refused("export.py", *flags, "--dtype", "int8")
    assert "no LoRA adapters" in refused("export.py", *flags, "--merge_lora", "true")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "not empty" in refused("export.py", *flags, "--output_dir", str(tmp_path / "full"))
    assert "is a file" in refused("export.py", *flags, "--output_dir", str(tmp_path / "full" / "file"))
    assert "cannot be written" in refused("export.py", *flags, "--output_dir", str(tmp_path / "full" / "file" / "x"))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_a_model_that_no_class_computes(trained: Path, tmp_path: Path, refused) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["frame_aggregator"] = "mean"
    (copy / "config.json").write_text(json.dumps(config))
    assert "which is concat" in refused("export.py", "--model_path", str(copy), "--output_dir", str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_difference_leaves_nothing(trained: Path, tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismatic.export import verify

    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    said = refused("export.py", "--model_path", str(trained), "--output_dir", str(tmp_path / "out"))
    assert "parity failed: logits differ" in said and not list(tmp_path.iterdir())


def test_push_to_hub(trained: Path, tmp_path: Path, run_export, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, dict]] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "hf_secret"

        def create_repo(self, repo_id: str, **more) -> str:
            calls.append(("create", {"repo_id": repo_id, **more}))
            return f"the-hub/{repo_id}"

        def upload_folder(self, **more) -> None:
            assert (more["folder_path"] / "config.json").is_file()
            calls.append(("upload", more))

    monkeypatch.setenv("A_TOKEN", "hf_secret")
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    flags = ("--model_path", str(trained), "--format", "prismatic", "--push_to_hub", "me/mine", "--hf_token", "A_TOKEN")
    out = run_export(*flags, "--output_dir", str(tmp_path / "a"))
    assert "uploaded to the-hub/me/mine" in out and "hf_secret" not in out
    assert calls[0] == ("create", {"repo_id": "me/mine", "private": True, "exist_ok": True})
    assert calls[1][1]["repo_id"] == "me/mine"
    monkeypatch.setattr(huggingface_hub, "HfApi", real)
    said = refused("export.py", *flags, "--output_dir", str(tmp_path / "b"))
    assert "--push_to_hub me/mine" in said and (tmp_path / "b" / "config.json").is_file()
