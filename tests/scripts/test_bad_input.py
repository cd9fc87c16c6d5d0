"""Bad input on the command line: what is printed, in one line, before anything expensive happens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prismatic.build import build_vlm
from prismatic.conf.models import ModelConfig
from prismatic.models.vlm import PrismaticVLM
from tests.scripts.conftest import TINY

Refused = Callable[..., str]


def _custom(tmp_path: Path, rows: object, *more: str) -> tuple[str, ...]:
    """Flags that train on an annotation file with these rows (a str is written as it is)."""
    (tmp_path / "a.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    media = tmp_path / "media"
    media.mkdir(exist_ok=True)
    return (
        *TINY,
        *("--dataset.type", "custom", "--dataset.dataset_root_dir", str(tmp_path)),
        *("--dataset.finetune_stage_components", '["a.json", "media"]', "--run_root_dir", str(tmp_path / "runs")),
        *more,
    )


def _chat(question: str = "What?", answer: str = "That.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.vision_backbone_id", "tiny-vitt"], "did you mean 'tiny-vit'"),
        (["--model.llm_backbone_id", "tiny-lama"], "did you mean 'tiny-llama'"),
        (["--model.arch_specifier", "no-align+gelu-mpl"], "did you mean 'gelu-mlp'"),
        (["--model.frame_aggregator", "concatt"], "did you mean 'concat'"),
        (["--model.frame_aggregator_options", '{"stride": 2}'], "has no option 'stride'"),
        (["--model.image_resize_strategy", "leterbox"], "did you mean 'letterbox'"),
        (["--model.prompt_template", "vicuna"], "did you mean 'vicuna-v15'"),
        (["--dataset.sampler", "unifrom"], "did you mean 'uniform'"),
        (["--dataset.decoder", "pav"], "did you mean 'pyav'"),
        (["--model.finetune_train_strategy", "fsdp"], "fsdp-full-shard"),
        (["--model.finetune_lr_scheduler_type", "cosine"], "linear-warmup+cosine-decay"),
        (["--model.num_frames", "0"], "--model.num_frames must be at least 1, got 0"),
        (["--model.finetune_per_device_batch_size", "3"], "is not a multiple of"),
        (["--model.finetune_global_batch_size", "5"], "is not a multiple of"),
        (["--hf_token", "no-such-file-or-variable"], "--hf_token"),
        (["--model.rope_scaling_type", "ntk"], "--model.rope_scaling_type must be dynamic, linear, yarn, got 'ntk'"),
        (["--model.repo_id", "a/b"], "--model.repo_id a/b says where --model.init_from_model is"),
        (["--model.vision_backbone_id", "clip-vit-b:x"], "only FastViT-HD takes its weights from elsewhere"),
        (["--device", "gpu"], "--device must be auto, cpu or cuda"),
        (["--model.init_from_model", "runs/not-there.pt"], "no run folder or checkpoint at runs/not-there.pt"),
        (["--model.arch_specifier", "gelu-mlp"], "--pretrained_checkpoint"),
        (["--resume", "checkpoints/step-000009"], "checkpoints/step-000009"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_flags(flags: list[str], said: str, shapes: tuple[str, ...], tmp_path: Path, refused: Refused) -> None:
    line = refused("pretrain.py", *TINY, *shapes, "--run_root_dir", str(tmp_path), *flags)
    assert said in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--model.freeze", '["llm_backbone.*embed_tokens*", "projctor.*"]'],
            "Weights are named like projector.projector.0.weight",
        ),
        (["--model.learning_rates", '{"*lora_A*": 1e-4}'], "no weight of this model matches '*lora_A*'"),
        (["--stage", "finetune", "--model.learning_rates", '{"vision_backbone.*": 1e-4}'], "none of them is trained"),
        (["--model.freeze", '["nothing"]'], "llm_backbone.llm.model.embed_tokens.weight; in a pattern"),
        (["--model.freeze", '["*"]'], "--model.freeze freezes all that --stage full-finetune trains"),
        (["--model.freeze", '["*base_layer*"]', "--model.lora.rank", "2"], "none of them is trained"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_patterns_are_read_before_weights_are(
    flags: list[str],
    said: str,
    shapes: tuple[str, ...],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outline(model: ModelConfig, **options: Any) -> PrismaticVLM:
        assert torch.get_default_device().type == "meta", "weights were asked for"
        return build_vlm(replace(model, pretrained_backbones=False), **options)  # nothing of tiny-video is published

    monkeypatch.setattr("prismatic.build.build_vlm", outline)
    args = (*TINY, *shapes, "--run_root_dir", str(tmp_path), "--model.pretrained_backbones", "true", *flags)
    assert said in refused("pretrain.py", *args)


def test_a_token_on_the_command_line(shapes: tuple[str, ...], tmp_path: Path, refused: Refused) -> None:
    token = "hf_" + "x" * 34
    line = refused("pretrain.py", *TINY, *shapes, "--run_root_dir", str(tmp_path), "--hf_token", token)
    assert "--hf_token takes the file" in line and token not in line and not list(tmp_path.iterdir())


def test_the_context_names_the_factor_that_makes_room(
    shapes: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    args = (*TINY, *shapes, "--run_root_dir", str(tmp_path), "--model.num_frames", "500")
    line = refused("pretrain.py", *args)
    factor = re.search(r"--model.rope_scaling_factor ([\d.]+)", line)
    assert factor and float(factor[1]) >= 500 * 9 / 2048
    again = refused("pretrain.py", *args, "--model.rope_scaling_factor", "1.5", "--model.rope_scaling_type", "yarn")
    assert f"context of {int(1.5 * 2048)}" in again and f"--model.rope_scaling_factor {factor[1]}" in again


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("[]", "empty"),
        ("{not json", "a.json"),
        ('{"id": "0", "conversations": [}', "a.json"),
        (json.dumps([{"id": "0", "image": "a.png"}]), "row 1"),
        (json.dumps([{"id": "0", "conversations": []}]), "row 1"),
        (json.dumps([{"id": "0", "video": "../a.mp4", "conversations": _chat()}]), "../a.mp4"),
        (json.dumps([{"id": "0", "video": "/etc/a.mp4", "conversations": _chat()}]), "/etc/a.mp4"),
        (json.dumps([{"id": "0", "video": "a.mp4", "conversations": _chat("<video><video>?")}]), "placeholder"),
        (json.dumps([{"video_id": "a", "caption": "b", "cluster": "0"}]), "webvid.py weave"),
    ],
)
def test_annotation_files(content: str, said: str, tmp_path: Path, refused: Refused) -> None:
    line = refused("pretrain.py", *_custom(tmp_path, content))
    assert said in line and "a.json" in line


def test_missing_annotation_file(tmp_path: Path, refused: Refused) -> None:
    args = list(_custom(tmp_path, "[]"))
    args[args.index('["a.json", "media"]')] = '["b.json", "media"]'
    line = refused("pretrain.py", *args)
    assert "b.json" in line and "--dataset.finetune_stage_components" in line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "a.mp4"),
        (b"", "empty"),
        (b"this is text, not a video\n" * 40, "a.mp4"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "a.mp4"),
    ],
    ids=["missing", "empty", "text", "truncated"],
)
def test_media(content: bytes | None, reason: str, tmp_path: Path, refused: Refused) -> None:
    args = _custom(tmp_path, [{"id": "0", "video": "a.mp4", "conversations": _chat()}] * 4)
    if content is not None:
        (tmp_path / "media" / "a.mp4").write_bytes(content)
    line = refused("pretrain.py", *args)
    assert reason in line and "a.json" in line and "row" in line


def test_no_answer_left_after_truncation(tmp_path: Path, refused: Refused) -> None:
    rows = [{"id": "0", "conversations": _chat("word " * 500)}] * 4
    line = refused("pretrain.py", *_custom(tmp_path, rows, "--model.llm_max_length", "64"))
    assert "--model.llm_max_length" in line and "row 1" in line


def test_more_tokens_than_the_context(shapes: tuple[str, ...], tmp_path: Path, refused: Refused) -> None:
    line = refused("pretrain.py", *TINY, *shapes, "--run_root_dir", str(tmp_path), "--model.num_frames", "5000")
    assert "--model.num_frames" in line and "--model.frame_aggregator" in line


def test_no_permission_to_write(shapes: tuple[str, ...], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = refused("pretrain.py", *TINY, *shapes, "--run_root_dir", str(tmp_path / "file" / "runs"))
    assert "file" in line


def test_generate_refuses_what_is_no_run(tmp_path: Path, refused: Refused) -> None:
    assert "latest-checkpoint" in refused("generate.py", "--model_path", str(tmp_path), "--media", "a.mp4")
    assert "did you mean" in refused("generate.py", "--model_path", "prism-clip+8b", "--media", "a.mp4")
    assert "did you mean 'keyframes'" in refused("generate.py", "--model_path", str(tmp_path), "--sampler", "keyframe")


def test_weights_that_do_not_fit_the_configuration(trained: Path, tmp_path: Path, refused: Refused) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["arch_specifier"] = "no-align+linear"
    (copy / "config.json").write_text(json.dumps(config))
    line = refused("generate.py", "--model_path", str(copy), "--media", "a.mp4")
    assert "do not fit" in line and "projector.projector." in line


def test_truncated_weights(trained: Path, tmp_path: Path, refused: Refused) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    weights = (copy / "checkpoints" / "latest-checkpoint.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "truncated" in refused("generate.py", "--model_path", str(copy), "--media", "a.mp4")
