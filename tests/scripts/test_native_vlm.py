"""`--model.type hf-vlm` as a user trains, asks and evaluates with it, on a tiny Qwen2-VL folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from tests.models.native.folders import write_folder
from tests.scripts.conftest import ROOT, Script, command, metric_rows, script_environment

RECIPE = "experiment_scripts/qwen2_vl_lora.yaml"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2-VL folder."""
    return write_folder("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"))


def _args(model: Path, shapes: tuple[str, ...], runs: Path, run_id: str, *more: str) -> tuple[str, ...]:
    return (
        *("--model.type", "hf-vlm", "--model.model_path", str(model), "--model.num_frames", "4", "--device", "cpu"),
        *("--model.finetune_global_batch_size", "4", "--model.finetune_per_device_batch_size", "2"),
        *("--model.finetune_learning_rate", "1e-3", "--dataset.num_workers", "0", "--trackers", '["jsonl"]', *shapes),
        *("--run_root_dir", str(runs), "--run_id", run_id, *more),
    )


def _run(script: str, *args: str, ranks: int = 1) -> None:
    done = subprocess.run(
        command(script, *args, ranks=ranks), env=script_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(qwen: Path, shapes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with packing, that also validates."""
    runs = tmp_path_factory.mktemp("native")
    _run("pretrain.py", *_args(qwen, shapes, runs, "native", "--model.finetune_max_steps", "4"))
    return runs / "native"


def test_a_run_trains_merger_and_llm_and_loads_back(trained: Path, qwen: Path) -> None:
    import prismatic

    rows = metric_rows(trained)
    assert len(rows) == 4 and all(np.isfinite(row["Finetune/Loss (Raw)"]) for row in rows)
    weights = load_file(trained / "checkpoints" / "latest-checkpoint.safetensors")
    assert {key.split(".")[0] for key in weights} == {"projector", "llm_backbone"}
    first = load_file(qwen / "model.safetensors")
    moved = {name for name in ("visual.merger.mlp.0.weight",) if name in first}
    assert moved and not weights["projector.merger.mlp.0.weight"].equal(first["visual.merger.mlp.0.weight"])

    vlm = prismatic.load(trained)
    builder = vlm.get_prompt_builder()
    builder.add_turn(role="human", message="What happens?")
    R = vlm.vision_backbone.image_spec.resolution
    clip = np.random.default_rng(0).integers(0, 256, (4, R, R, 3), dtype=np.uint8)
    assert isinstance(vlm.generate(clip, builder.get_prompt(), max_new_tokens=4, num_beams=2), str)
    assert prismatic.load(trained, num_frames=2).tokens_per_clip(2) == 4


def test_resume_and_two_ranks_equal_one_run(trained: Path, qwen: Path, shapes: tuple[str, ...], tmp_path: Path) -> None:
    half = _args(qwen, shapes, tmp_path, "native", "--model.finetune_max_steps", "4", "--checkpoint_interval", "2")
    _run("pretrain.py", *half, "--keep_checkpoints", "9", ranks=2)
    losses = [row["Finetune/Loss (Raw)"] for row in metric_rows(tmp_path / "native")]
    expected = [row["Finetune/Loss (Raw)"] for row in metric_rows(trained)]
    np.testing.assert_allclose(losses, expected, atol=2e-4)
    # Go on from the middle, in one process: the same end.
    middle = tmp_path / "native" / "checkpoints" / "step-000002"
    again = _args(qwen, shapes, tmp_path, "again", "--model.finetune_max_steps", "4", "--resume", str(middle))
    _run("pretrain.py", *again)
    ours = load_file(tmp_path / "again" / "checkpoints" / "latest-checkpoint.safetensors")
    theirs = load_file(trained / "checkpoints" / "latest-checkpoint.safetensors")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-4


def test_the_lora_recipe_trains_from_its_file_and_answers_with_beams(
    qwen: Path, data_root: Path, tmp_path: Path, call: Script
) -> None:
    pytest.importorskip("peft")
    recipe = yaml.safe_load((ROOT / RECIPE).read_text())["model"]
    assert recipe["lora"] == {"rank": 64, "alpha": 128, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    assert (recipe["num_frames"], recipe["image_size"], recipe["finetune_epochs"]) == (8, 224, 3)
    where = ("--dataset.dataset_root_dir", str(data_root / "moving-shapes"))
    small = ("--model.model_path", str(qwen), "--model.pretrained_backbones", "false", "--model.image_size", "56")
    small += ("--model.finetune_max_steps", "2", "--model.finetune_global_batch_size", "4")
    _run(
        "pretrain.py",
        *("--config_path", RECIPE, *small, *where, "--dataset.finetune_stage_components", '["train.json", "."]'),
        *("--run_root_dir", str(tmp_path), "--dataset.num_workers", "0", "--device", "cpu"),
    )
    run = tmp_path / "qwen2-vl-lora"
    adapter = load_file(run / "checkpoints" / "latest-adapter" / "adapter_model.safetensors")
    assert {key.rsplit(".", 3)[1] for key in adapter} == {"q_proj", "v_proj"}
    assert all(key.startswith("base_model.model.model.language_model.layers.") for key in adapter)
    assert all(64 in tensor.shape for tensor in adapter.values())
    weights = load_file(run / "checkpoints" / "latest-checkpoint.safetensors")
    assert {key.split(".")[0] for key in weights} == {"projector"}
    _run(
        "evaluate.py",
        *("--model_path", str(run), "--dataset.type", "custom", *where, "--device", "cpu", "--limit", "2"),
        *("--dataset.finetune_stage_components", '["val.json", "."]', "--task", "caption", "--num_beams", "2"),
        *("--max_new_tokens", "4", "--output_dir", str(run / "evaluation")),
    )
    answered = (run / "evaluation" / "predictions.jsonl").read_text().splitlines()
    assert len(answered) == 2 and all("prediction" in json.loads(line) for line in answered)
    out = tmp_path / "exported"
    done = call("export.py", "--model_path", str(run), "--merge_lora", "true", "--output_dir", str(out))
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr[-3000:]
    assert load_file(out / "model.safetensors").keys() == load_file(qwen / "model.safetensors").keys()


def test_dry_run_counts_without_weights(qwen: Path, shapes: tuple[str, ...], tmp_path: Path) -> None:
    from prismatic.conf import cli
    from prismatic.conf.run import PretrainConfig
    from prismatic.preview import describe

    bare = Path(shutil.copytree(qwen, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))
    said = describe(cli.parse(PretrainConfig, _args(bare, shapes, tmp_path, "dry")))
    assert "4 frames = 8 visual tokens" in said
    assert not (tmp_path / "dry").exists()


def _refuse(refused: Callable[..., str], model: Path | str, shapes: tuple[str, ...], runs: Path, *more: str) -> str:
    return refused("pretrain.py", *_args(Path(model), shapes, runs, "refused", *more))


def test_bad_checkpoints_are_refused_in_one_line(
    qwen: Path, shapes: tuple[str, ...], tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = _refuse(refused, tmp_path / "nowhere", shapes, tmp_path)
    assert "--model.model_path" in said and "nowhere" in said

    llm = tmp_path / "llm"
    llm.mkdir()
    (llm / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "not a vision-language model" in _refuse(refused, llm, shapes, tmp_path)

    own = tmp_path / "own"
    own.mkdir()
    mark = tmp_path / "it-ran"
    (own / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (own / "config.json").write_text(
        json.dumps({"model_type": "evil_vlm", "auto_map": {"AutoConfig": "evil.EvilConfig"}})
    )
    for flag in ("false", "true"):
        said = _refuse(refused, own, shapes, tmp_path, "--model.trust_remote_code", flag)
        assert "code from its own repository" in said and "--model.trust_remote_code" in said
    assert not mark.exists()

    assert "multiple of 28" in _refuse(refused, qwen, shapes, tmp_path, "--model.image_size", "100")
    said = refused("pretrain.py", "--model.type", "hf-vlm", *shapes, "--device", "cpu")
    assert "--model.model_path" in said
