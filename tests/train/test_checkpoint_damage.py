"""Checkpoints that were cut, flipped or never finished are found out, and the one before is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic.train import folder
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]
CUTS = 50


@pytest.fixture
def saved(trainer: Make) -> Trainer:
    """A run of two checkpoints, step-000004 and step-000008."""
    run = trainer()
    run.fit()
    return run


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir())


def test_every_cut_of_a_file_is_found(saved: Trainer) -> None:
    newest = saved.run_dir / "checkpoints" / "step-000008"
    assert folder.find_latest(saved.run_dir) == newest
    for path in _files(newest):
        whole = path.read_bytes()
        for number in range(CUTS):
            path.write_bytes(whole[: len(whole) * number // CUTS])
            found = folder.find_latest(saved.run_dir)
            assert found is not None and found.name == "step-000004", (path.name, number)
        path.write_bytes(whole)
    assert folder.find_latest(saved.run_dir) == newest


def test_every_flipped_byte_is_found(saved: Trainer) -> None:
    newest = saved.run_dir / "checkpoints" / "step-000008"
    for path in _files(newest):
        whole = path.read_bytes()
        for number in range(CUTS):
            place = len(whole) * number // CUTS
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            problem = folder.incomplete(newest) or folder.damaged(newest)
            assert problem is not None, (path.name, place)
        path.write_bytes(whole)
    assert folder.incomplete(newest) is None and folder.damaged(newest) is None


def test_a_run_goes_on_from_the_one_before_a_flipped_byte_and_says_so(
    trainer: Make, saved: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load_file(saved.run_dir / "checkpoints" / "latest-checkpoint.safetensors")
    data = saved.run_dir / "checkpoints" / "step-000008" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    again = trainer()
    with caplog.at_level("INFO", logger="prismatic"):
        assert again.fit() is None
    assert "Passing over the checkpoint" in caplog.text and "__0_0.distcp is damaged: its checksum is" in caplog.text
    assert "step-000004: 4 of 8 steps are done" in caplog.text
    weights = load_file(again.run_dir / "checkpoints" / "latest-checkpoint.safetensors")
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert (again.run_dir / "previous-1" / "checkpoints" / "step-000008").is_dir()


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(trainer: Make, saved: Trainer) -> None:
    target = saved.run_dir / "checkpoints" / "step-000004"
    state = target / "state.json"
    state.write_text(state.read_text().replace('"step_in_epoch": 0', '"step_in_epoch": 1'))
    with pytest.raises(ValueError, match=r"step-000004: this checkpoint cannot be used: .*state.json is damaged"):
        trainer(resume=str(target)).fit()


def test_a_checkpoint_of_an_older_version_goes_on(trainer: Make) -> None:
    """It has no checksums, no numbers of the optimizer, no best loss."""
    first = trainer()
    first.train_loader.events = {6: [15]}
    first.fit()
    path = first.run_dir / "checkpoints" / "step-000006" / "state.json"
    state = json.loads(path.read_text())
    for key in ("checksums", "crc32", "weights", "optimizer", "measured"):
        del state[key]
    path.write_text(json.dumps(state))
    second, whole = trainer(), trainer(run_id="whole")
    assert second.fit() is None and whole.fit() is None
    assert second.losses == whole.losses


@pytest.mark.parametrize("share", [0.02, 0.6, 0.999, 1.3])
def test_killed_at_a_byte_of_a_save(launch: Callable, trainer: Make, tmp_path: Path, share: float) -> None:
    _assert_survives_a_kill_at_byte(launch, trainer, tmp_path, share)


@pytest.mark.slow
def test_killed_at_fifty_bytes_of_a_save(launch: Callable, trainer: Make, tmp_path: Path) -> None:
    for number in range(CUTS):
        _assert_survives_a_kill_at_byte(launch, trainer, tmp_path, 2 * number / CUTS)
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(tmp_path / "undisturbed")


def _assert_survives_a_kill_at_byte(launch: Callable, trainer: Make, tmp_path: Path, share: float) -> None:
    """share: of the bytes of one save; 1.3 is in the second one, when the first is done."""
    other = trainer(run_id="undisturbed")
    other.fit()
    one = sum(path.stat().st_size for path in _files(folder.newest(other.run_dir)) if path.name != "state.json")
    codes, _ = launch({"die_at_byte": int(share * one)})
    assert codes == [-9]
    run_dir = tmp_path / "run"
    found = folder.find_latest(run_dir)
    assert (found and found.name) == ("step-000004" if share >= 1 else None)
    link = run_dir / "checkpoints" / "latest-checkpoint.safetensors"
    assert not link.is_symlink() or load_file(link)
    codes, result = launch({})
    assert codes == [0] and result["step"] == 8 and len(result["ids"]) == (4 if share >= 1 else 8)
    assert result["losses"] == other.losses
    ours = load_file(tmp_path / "result.json.safetensors")
    theirs = load_file(other.run_dir / "checkpoints" / "latest-checkpoint.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not [name for name in os.listdir(run_dir / "checkpoints") if name.startswith(".")]
