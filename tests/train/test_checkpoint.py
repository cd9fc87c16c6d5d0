"""What a checkpoint holds, that it comes back bit for bit, and what a damaged or hostile one does."""

from __future__ import annotations

import enum
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from prismatic.train import checkpoint, folder, weights
from prismatic.train.errors import CheckpointError
from prismatic.train.reader import TensorReader
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local().clone() if isinstance(value, DTensor) else value.clone()


def _everything(trainer: Trainer) -> list[torch.Tensor]:
    values = [_local(v) for v in trainer.vlm.state_dict().values()]
    for parameter in trainer.stepper._trained():
        values += [_local(v) for _, v in sorted(trainer.optimizer.state[parameter].items())]
    return values


def _assert_equal(one: list[torch.Tensor], two: list[torch.Tensor]) -> None:
    assert len(one) == len(two)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_layout_of_the_folder(trainer: Make, tmp_path: Path) -> None:
    done = trainer(stage="finetune")
    assert done.fit() is None
    here = tmp_path / "run" / "checkpoints"
    latest = here / "latest-checkpoint.safetensors"
    assert latest.is_symlink() and not Path(os.readlink(latest)).is_absolute()
    name = f"step-000008-epoch-02-loss={done.mean_loss:.4f}.safetensors"
    assert os.readlink(latest) == name
    assert sorted(p.name for p in here.iterdir()) == sorted(
        [
            *("latest-checkpoint.safetensors", "best-checkpoint.safetensors", "step-000004", "step-000008", name),
            *[p.name for p in here.glob("*04-ep*")],
        ]
    )
    assert len(list(here.glob("step-000004-epoch-01-loss=*.safetensors"))) == 1
    state = load_file(latest)
    assert {key.split(".")[0] for key in state} == {"projector", "llm_backbone"}
    whole = weights.gather(done.vlm, done.trained_modules)
    assert all(torch.equal(state[key], whole[key]) for key in whole) and state.keys() == whole.keys()
    # Tied weights: both keys are there.
    assert torch.equal(state["llm_backbone.lm_head.weight"], state["llm_backbone.embed.weight"])
    assert latest.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_trained_vision_tower_is_in_the_file_with_its_statistics(trainer: Make, tmp_path: Path) -> None:
    trainer(stage="full-finetune").fit()
    state = load_file(tmp_path / "run" / "checkpoints" / "latest-checkpoint.safetensors")
    assert {"vision_backbone.0.weight", "vision_backbone.1.running_mean"} <= state.keys()


def test_restore_gives_back_weights_and_optimizer_bit_for_bit(trainer: Make) -> None:
    one = trainer(stage="full-finetune")
    one.fit()
    two = trainer(stage="full-finetune", model_seed=5, resume="never")
    state = checkpoint.restore(folder.find_latest(one.run_dir), two.vlm, two.optimizer)
    _assert_equal(_everything(one), _everything(two))
    assert state["step"] == 8 and state["seen"] == 64
    assert [g["weight_decay"] for g in two.optimizer.param_groups] == [0.05, 0.0]


def test_only_the_newest_are_kept(trainer: Make) -> None:
    run = trainer(checkpoint_interval=1, keep_checkpoints=3, keep_best=0)
    run.fit()
    here = run.run_dir / "checkpoints"
    assert [p.name for p in folder.resumable(run.run_dir)] == ["step-000008", "step-000007", "step-000006"]
    assert len(list(here.glob("*.safetensors"))) == 4  # Three and the link


@pytest.mark.parametrize("damage", ["cut", "gone", "no state", "half a state", "empty"])
def test_damaged_checkpoint_is_passed_over(trainer: Make, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer()
    run.fit()
    newest = run.run_dir / "checkpoints" / "step-000008"
    data = newest / "__0_0.distcp"
    if damage == "cut":
        os.truncate(data, data.stat().st_size - 1)
    elif damage == "gone":
        data.unlink()
    elif damage == "no state":
        (newest / "state.json").unlink()
    elif damage == "half a state":
        os.truncate(newest / "state.json", 40)
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    assert folder.find_latest(run.run_dir).name == "step-000004"
    assert "Passing over" in caplog.text and "step-000008" in caplog.text
    with pytest.raises(CheckpointError, match="step-000008 cannot be used"):
        checkpoint.restore(newest, run.vlm, run.optimizer)


def test_checkpoint_of_another_model_is_refused(trainer: Make) -> None:
    one = trainer(stage="align")
    one.fit()
    two = trainer(stage="full-finetune")
    with pytest.raises(CheckpointError, match="does not fit this model"):
        checkpoint.restore(folder.find_latest(one.run_dir), two.vlm, two.optimizer)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_hostile_table_of_contents_is_not_run(trainer: Make, tmp_path: Path) -> None:
    run = trainer()
    run.fit()
    target = folder.find_latest(run.run_dir)
    table = target / ".metadata"
    bombs = [
        pickle.dumps(_Bomb(tmp_path / "boom")),
        # A dotted name that starts in an allowed module: filesystem.os.system
        b"\x80\x04\x8c'torch.distributed.checkpoint.filesystem\x8c\tos.system\x93\x8c\x05touch\x85R.",
        b"cos\nsystem\n(S'touch boom'\ntR.",
        pickle.dumps({"a": 1}),
        # getattr, which may name a member of an enumeration and nothing else
        b"\x80\x04cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.filesystem\nFileSystemReader\nX\x04\0\0\0pathtR.",
        # A key of tuples in tuples, whose hash takes hours: each holds the one before twice, by the memo or by DUP
        b"\x80\x04})\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"K\x01s.",
        b"\x80\x04})" + 60 * b"2\x86" + b"K\x01s.",
    ]
    for bomb in bombs:
        table.write_bytes(bomb)
        state = folder.read_state(target)
        state["files"][".metadata"] = len(bomb)
        folder.write_state(target, state)
        with pytest.raises(CheckpointError, match="metadata"):
            checkpoint.restore(target, run.vlm, run.optimizer)
    assert not (tmp_path / "boom").exists()


def test_a_table_written_by_another_python(trainer: Make) -> None:
    """Before 3.11.4 enumerations are pickled by getattr; in 3.13 paths come from a module of another name."""
    run = trainer()
    run.fit()
    target = folder.find_latest(run.run_dir)
    table = TensorReader(target).read_metadata()

    class Older(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            return (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented

    with (target / ".metadata").open("wb") as file:
        Older(file, protocol=3).dump(table)
    written = (target / ".metadata").read_bytes()
    assert b"getattr" in written and re.search(rb"pathlib[a-z._]*\nPurePosixPath", written)
    written = re.sub(rb"pathlib[a-z._]*\nPurePosixPath", b"pathlib._local\nPosixPath", written)
    (target / ".metadata").write_bytes(written)
    state = folder.read_state(target)
    state["files"][".metadata"] = (target / ".metadata").stat().st_size
    folder.write_state(target, state)
    assert TensorReader(target).read_metadata().state_dict_metadata == table.state_dict_metadata
    checkpoint.restore(target, run.vlm, run.optimizer)


def test_pickled_values_are_refused(trainer: Make, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    run = trainer()
    run.fit()
    target = folder.find_latest(run.run_dir)
    keys = list(checkpoint.contents(run.vlm, run.optimizer)["model"])
    fake = tmp_path / "fake"
    dcp.save({"model": {k: _Bomb(tmp_path / "boom") for k in keys}}, checkpoint_id=fake)
    for path in fake.iterdir():
        shutil.copy(path, target / path.name)
    state = folder.read_state(target)
    state["files"] = {p.name: p.stat().st_size for p in fake.iterdir()}
    folder.write_state(target, state)
    with pytest.raises(CheckpointError):
        checkpoint.restore(target, run.vlm, run.optimizer)
    assert not (tmp_path / "boom").exists()


def test_random_frozen_modules_are_saved_once_and_come_back(trainer: Make, tmp_path: Path) -> None:
    one = trainer(stage="align", frozen_modules=["vision_backbone", "llm_backbone"], model_align_max_steps=2)
    one.fit()
    path = tmp_path / "run" / "checkpoints" / "frozen-backbones.safetensors"
    before = path.stat().st_mtime_ns
    frozen = weights.gather(one.vlm, ["vision_backbone", "llm_backbone"])
    saved = load_file(path)
    assert saved.keys() == frozen.keys() and all(torch.equal(saved[k], frozen[k]) for k in saved)
    two = trainer(
        stage="align", frozen_modules=["vision_backbone", "llm_backbone"], model_seed=9, model_align_max_steps=2
    )
    two.fit()
    again = weights.gather(two.vlm, ["vision_backbone", "llm_backbone"])
    assert all(torch.equal(again[k], frozen[k]) for k in frozen)
    assert path.stat().st_mtime_ns == before


def test_resuming_from_an_older_checkpoint_moves_the_later_ones_aside(trainer: Make, tmp_path: Path) -> None:
    first = trainer(checkpoint_interval=2, keep_checkpoints=9)
    first.fit()
    expected = _everything(first)
    here = tmp_path / "run" / "checkpoints"
    second = trainer(resume=str(here / "step-000002"), keep_checkpoints=9)
    assert second.fit() is None
    _assert_equal(expected, _everything(second))
    moved = tmp_path / "run" / "previous-1" / "checkpoints"
    assert {p.name for p in moved.iterdir() if p.is_dir()} == {"step-000004", "step-000006", "step-000008"}
    assert {p.name for p in here.iterdir() if p.is_dir()} == {"step-000002", "step-000004", "step-000008"}
    assert (here / "latest-checkpoint.safetensors").exists()


def test_resume_path_without_a_checkpoint_says_what_it_takes(trainer: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--resume .*nowhere: no resumable checkpoint there; it takes a folder like"):
        trainer(resume=str(tmp_path / "nowhere")).fit()
