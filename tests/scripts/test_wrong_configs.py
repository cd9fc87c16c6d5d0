"""Wrong settings: exit code 2 and one line that names the field, in little time and before any model is made."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts.conftest import ROOT, script_environment

LIMIT_S = 3.0
PRETRAIN = {
    # unknown keys
    "--model.numframes 3": "--model.num_frames",
    "--nonsense 1": "--nonsense",
    "--dataset.workers 1": "--dataset.workers",
    "--model.lora.rnk 3": "--model.lora.rank",
    "--config_path unknown.yaml": "modell",
    # types
    "--model.num_frames three": "model.num_frames",
    "--model.num_frames 2.5": "model.num_frames",
    "--model.num_frames": "--model.num_frames",
    "--seed x": "seed",
    "--dry_run maybe": "dry_run",
    "--trackers jsonl": "--trackers",
    "--model.finetune_learning_rate fast": "model.finetune_learning_rate",
    "--dataset.finetune_stage_components a.json": "dataset.finetune_stage_components",
    '--dataset.finetune_stage_components ["a.json"]': "dataset.finetune_stage_components",
    # ids
    "--model.type tiny-vdeo": "--model.type",
    "--dataset.type moving-shape": "--dataset.type",
    "--stage finetuen": "--stage",
    '--trackers ["jsnl"]': "--trackers",
    "--dataset.on_error ignore": "--dataset.on_error",
    "--dataset.short_clips repet": "--dataset.short_clips",
    "--model.visual_token_layout front": "--model.visual_token_layout",
    "--device gpu": "--device",
    # missing paths, broken files
    "--config_path none.yaml": "--config_path none.yaml cannot be read: No such file",
    "--config_path .": "--config_path . cannot be read: Is a directory",
    "--config_path broken.yaml": "--config_path broken.yaml is no YAML or JSON",
    "--config_path list.yaml": "--config_path list.yaml must hold settings by name (`seed: 7`), not a list",
    "--config_path picture.yaml": "--config_path picture.yaml cannot be read: not UTF-8",
    "--dataset.dataset_root_dir nowhere": "--dataset.finetune_stage_components",
    "--plugins no.such.module": "--plugins",
    # values
    "--model.num_frames -1": "--model.num_frames",
    "--model.finetune_learning_rate -1": "--model.finetune_learning_rate must be a number greater than 0, got -1",
    "--model.finetune_learning_rate nan": "--model.finetune_learning_rate",
    "--model.finetune_max_grad_norm 0": "--model.finetune_max_grad_norm must",
    "--model.finetune_weight_decay -0.1": "--model.finetune_weight_decay",
    "--model.finetune_epochs 0": "--model.finetune_epochs",
    "--model.finetune_global_batch_size 0": "--model.finetune_global_batch_size",
    "--model.finetune_warmup_ratio 1.5": "--model.finetune_warmup_ratio",
    "--dataset.max_skipped_share 2": "--dataset.max_skipped_share",
    "--dataset.num_workers -1": "--dataset.num_workers",
    "--checkpoint_interval 0": "--checkpoint_interval",
    "--keep_checkpoints 0": "--keep_checkpoints",
    "--run_id ../x": "--run_id",
    "--model.lora.rank -2": "--model.lora.rank",
}
OTHERS = {
    "generate.py --num_beams 0": "--num_beams",
    "generate.py --temperature hot": "temperature",
    "generate.py --modelpath x": "--model_path",
    "evaluate.py --batch_size 0 --model_path x": "--batch_size",
    "evaluate.py --limit none --model_path x": "limit",
    "evaluate.py --dataset.dataset_root_dir nowhere --model_path x": "--dataset.finetune_stage_components",
    "export.py --format onnx --model_path x": "--format",
    "preprocess.py --dataset_id movig-shapes": "--dataset_id",
    "webvid.py cluser": "did you mean 'cluster'",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with files that are no configurations."""
    (tmp_path / "unknown.yaml").write_text("modell:\n  num_frames: 3\n")
    (tmp_path / "broken.yaml").write_text("model: [1, 2\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a model, or reading weights, fails the test."""
    import prismatic.build
    import prismatic.models.checkpoints

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was asked for")

    for module, name in ((prismatic.build, "build_vlm"), (prismatic.models.checkpoints, "read_weights")):
        monkeypatch.setattr(module, name, never)


@pytest.mark.parametrize("case", [*(f"pretrain.py {flags}" for flags in PRETRAIN), *OTHERS])
def test_wrong_settings(case: str, folder: Path, no_model: None, refused: Callable[..., str]) -> None:
    script, *args = case.split()
    said = {**{f"pretrain.py {flags}": named for flags, named in PRETRAIN.items()}, **OTHERS}[case]
    type_given = "--model.type" in args or script != "pretrain.py"
    fixed = [] if type_given else ["--model.type", "tiny-video", "--dataset.type", "moving-shapes"]
    line = refused(script, *fixed, *args)
    assert said in line and "\n" not in line
    assert not (folder / "runs").exists() and not (folder / "evaluation").exists()


@pytest.mark.parametrize(
    "case", ["--model.num_frames 0", "--config_path list.yaml", "--dataset.dataset_root_dir nowhere"]
)
def test_a_process_of_its_own_ends_soon(case: str, folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "pretrain.py"), "--model.type", "tiny-video", *case.split()],
        env=script_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT_S


def test_there_are_forty() -> None:
    assert len(PRETRAIN) + len(OTHERS) >= 40


def test_the_default_configuration_is_understood(folder: Path, refused: Callable[..., str]) -> None:
    """What it lacks here is its data alone, and the line says how to get them."""
    line = refused("pretrain.py")
    assert "does not exist" in line and "scripts/preprocess.py" in line
    assert os.listdir(folder).count("runs") == 0
