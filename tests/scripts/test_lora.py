"""`--model.lora.*` as a user trains with it: what lies in the run folder, resuming, loading, several processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.scripts.conftest import TINY, Script, command, metric_rows, script_environment

pytest.importorskip("peft")
LORA = ("--model.lora.rank", "4", "--model.lora.alpha", "8", "--model.lora.dropout", "0.1")


def _args(shapes: tuple[str, ...], runs: Path, run_id: str, steps: int, *more: str) -> tuple[str, ...]:
    where = ("--run_root_dir", str(runs), "--run_id", run_id, "--checkpoint_interval", "2", "--keep_checkpoints", "3")
    return (*TINY, "--stage", "finetune", *LORA, *shapes, *where, "--model.finetune_max_steps", str(steps), *more)


@pytest.fixture(scope="module")
def adapted(shapes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after four steps of LoRA on random weights."""
    runs = tmp_path_factory.mktemp("lora")
    done = subprocess.run(
        command("pretrain.py", *_args(shapes, runs, "adapted", 4)),
        env=script_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return runs / "adapted"


def test_what_a_run_leaves(adapted: Path) -> None:
    checkpoints = adapted / "checkpoints"
    weights = load_file(checkpoints / "latest-checkpoint.safetensors")
    assert {key.split(".")[0] for key in weights} == {"projector"}
    adapter = checkpoints / "latest-adapter"
    assert adapter.resolve().name == (checkpoints / "latest-checkpoint.safetensors").resolve().stem + "-adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["inference_mode"]) == ("LORA", 4, 8, True)
    state = load_file(adapter / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.model.layers.") and ".lora_" in key for key in state)
    # The base exists once, under its plain names, and in no resumable folder.
    frozen = load_file(checkpoints / "frozen-backbones.safetensors")
    assert any(k.startswith("llm_backbone.llm.model.layers.") for k in frozen)
    assert not any(".base_layer." in k or ".lora_" in k for k in frozen)
    base = sum(t.numel() * 4 for k, t in frozen.items() if k.startswith("llm_backbone."))
    folder = sum(p.stat().st_size for p in (checkpoints / "step-000004").iterdir())
    trained = sum(t.numel() * 4 for t in (*state.values(), *weights.values()))
    assert folder < 3 * trained + 200_000 < base


def test_load_merge_and_peft_answer_alike(adapted: Path) -> None:
    from peft import PeftModel

    import prismatic
    from prismatic.models.llm import lora

    vlm = prismatic.load(adapted)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        logits = vlm.llm_backbone.llm(input_ids=ids).logits
        clip = torch.full((4, 40, 50, 3), 128, dtype=torch.uint8)
        said = vlm.generate(clip, "In: What?\nOut:", max_new_tokens=12)
        lora.merge_adapter(vlm.llm_backbone)
        torch.testing.assert_close(vlm.llm_backbone.llm(input_ids=ids).logits, logits, atol=1e-5, rtol=0)
        assert vlm.generate(clip, "In: What?\nOut:", max_new_tokens=12) == said
        base = prismatic.load(adapted).llm_backbone
        lora_free = {lora.base_key(k): v for k, v in base.llm.state_dict().items() if not lora.is_adapter_key(k)}
        plain = vlm.llm_backbone.llm
        plain.load_state_dict(lora_free)
        assert not plain(input_ids=ids).logits.equal(logits)
        theirs = PeftModel.from_pretrained(plain, adapted / "checkpoints" / "latest-adapter")
        assert theirs(input_ids=ids).logits.equal(logits)


def test_two_then_two_steps_equal_four(adapted: Path, shapes: tuple[str, ...], tmp_path: Path, call: Script) -> None:
    whole = metric_rows(adapted)
    first = call("pretrain.py", *_args(shapes, tmp_path, "again", 4))
    assert first.returncode == 0, first.stderr[-2000:]
    for name in ("step-000004", "latest-checkpoint.safetensors", "latest-adapter"):
        path = tmp_path / "again" / "checkpoints" / name
        path.rename(tmp_path / name)
    again = call("pretrain.py", *_args(shapes, tmp_path, "again", 4))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "step-000002" in again.stderr
    assert [r["Finetune/Loss (Raw)"] for r in metric_rows(tmp_path / "again")] == [
        r["Finetune/Loss (Raw)"] for r in whole
    ]
    for file in ("latest-checkpoint.safetensors", "latest-adapter/adapter_model.safetensors"):
        ours, theirs = (load_file(run / "checkpoints" / file) for run in (tmp_path / "again", adapted))
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


def test_two_processes_and_a_run_that_starts_from_an_adapted_one(
    adapted: Path, shapes: tuple[str, ...], tmp_path: Path, call: Script
) -> None:
    more = ("--model.lora.dropout", "0.0", "--model.enable_gradient_checkpointing", "true")
    for name, ranks in (("two", 2), ("one", 1)):
        args = _args(shapes, tmp_path, name, 4, *more, "--model.init_from_model", str(adapted))
        done = call("pretrain.py", *args, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    two_losses, one_losses = (
        [r["Finetune/Loss (Raw)"] for r in metric_rows(tmp_path / name)] for name in ("two", "one")
    )
    torch.testing.assert_close(two_losses, one_losses, atol=2e-4, rtol=0)
    import prismatic

    assert prismatic.load(tmp_path / "two").llm_backbone.adapter is not None


def test_refusals(shapes: tuple[str, ...], tmp_path: Path, refused, adapted: Path) -> None:
    args = (*TINY, *shapes, "--run_root_dir", str(tmp_path))
    assert "without --model.lora.rank" in refused("pretrain.py", *args, "--model.lora.alpha", "4")
    assert "--stage align" in refused("pretrain.py", *args, *LORA, "--stage", "align")
    assert "no layer 'qproj'" in refused("pretrain.py", *args, *LORA, "--model.lora.target_modules", '["qproj"]')
    assert "--model.lora.rank must be at least 0" in refused("pretrain.py", *args, "--model.lora.rank", "-1")
    assert "--model.lora.rank 4 -> 8" in refused(
        "pretrain.py", *_args(shapes, adapted.parent, "adapted", 4), "--model.lora.rank", "8"
    )


def test_a_lost_adapter_is_named(adapted: Path, tmp_path: Path, refused) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy, symlinks=True)
    for folder in (copy / "checkpoints").glob("*-adapter"):
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    assert "'-adapter'" in refused("generate.py", "--model_path", str(copy), "--media", "a.mp4")
