"""Full disks, missing permissions, and kills while a checkpoint is being written: the last good one stays whole."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic.train import files, folder
from prismatic.train.errors import CheckpointError
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]


@contextlib.contextmanager
def _mounted(path: Path, options: str) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no permission to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def _assert_whole(run_dir: Path, step: int) -> None:
    here = run_dir / "checkpoints"
    assert folder.find_latest(run_dir).name == f"step-{step:06d}"
    assert load_file(here / "latest-checkpoint.safetensors")
    leftovers = [p for p in here.iterdir() if p.name.startswith(".")]
    assert not leftovers


@pytest.mark.parametrize("limit", [0, 3_000, 40_000])
def test_full_disk_in_the_middle_of_a_save(trainer: Make, file_limit: Callable, limit: int) -> None:
    run = trainer(model_finetune_max_steps=4)
    run.fit()
    good = (run.run_dir / "checkpoints" / "latest-checkpoint.safetensors").read_bytes()
    run.at.step = 5
    with file_limit(limit), pytest.raises(CheckpointError) as caught:
        run.save()
        run.saver.finish()
    text = str(caught.value)
    assert "step-000005" in text and "could not be written" in text and "are free on that disk" in text
    assert f"The last good checkpoint is whole: {run.run_dir}/checkpoints/step-000004" in text
    assert "--run_root_dir" in text
    _assert_whole(run.run_dir, 4)
    assert (run.run_dir / "checkpoints" / "latest-checkpoint.safetensors").read_bytes() == good
    run.save()  # With room again
    run.saver.finish()
    _assert_whole(run.run_dir, 5)


def test_full_disk_while_writing_whole_weights(tmp_path: Path, file_limit: Callable) -> None:
    # The library has an error class of its own, which is no OSError.
    with file_limit(1000), pytest.raises(OSError, match="File too large"):
        files.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1000)})


def test_equal_tensors_make_equal_files(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, dtype=torch.int64)}
    for number in range(8):
        files.write_tensors(tmp_path / f"{number}.safetensors", tensors)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_small_disk_is_noticed_before_training(tmp_path: Path, trainer: Make) -> None:
    with _mounted(tmp_path / "small", "size=64k"):
        with pytest.raises(CheckpointError, match=r"\([\d.]+ kB\) .*no room for it; [\d.]+ kB are free"):
            trainer(run_root_dir=tmp_path / "small").fit()
        assert not list((tmp_path / "small" / "run" / "checkpoints").iterdir())


def test_disk_that_fills_up_while_writing(tmp_path: Path, trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # A quota: the system says that there is room, and then there is none.
    monkeypatch.setattr(files, "check_space", lambda *_: None)
    with _mounted(tmp_path / "small", "size=200k"):
        run = trainer(run_root_dir=tmp_path / "small", checkpoint_interval=1)
        with pytest.raises(CheckpointError, match="could not be written") as caught:
            run.fit()
        assert "step-000001" in str(caught.value)
        _assert_whole(run.run_dir, 1)
        # Metrics of the steps are complete, or wait in memory; there is no half row.
        assert all(line.endswith("}") for line in (run.run_dir / "run.jsonl").read_text().splitlines())


def test_read_only_disk(tmp_path: Path, trainer: Make) -> None:
    root = tmp_path / "disk"
    with _mounted(root, "size=8m"):
        run = trainer(run_root_dir=root, model_finetune_max_steps=4)
        run.fit()
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        run.at.step = 5
        with pytest.raises(CheckpointError, match="Read-only file system"):
            run.save()
            run.saver.finish()
        _assert_whole(run.run_dir, 4)


def test_no_permission_is_noticed_before_training(tmp_path: Path, trainer: Make) -> None:
    # A file where a folder must be: refused for every user, root too.
    run = trainer()
    (run.run_dir / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"could not be written: (File exists|Not a directory)"):
        run.fit()
    assert run.at.step == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission(tmp_path: Path, trainer: Make) -> None:
    run = trainer()
    (run.run_dir / "checkpoints").mkdir()
    (run.run_dir / "checkpoints").chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        run.fit()


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("remove_leftovers", 3),  # Before anything is written
        ("write_json", 2),  # The shards are there, their state is not
        ("write_tensors", 2),  # Half of the whole weights is there
        ("replace_link", 2),  # The weights have their name, the link is old
        ("remove", 1),  # The new one is there, the old one is being removed
        ("sync", 7),
        ("sync", 8),  # All is done
    ],
)
def test_killed_while_saving(launch: Callable, trainer: Make, tmp_path: Path, name: str, at: int) -> None:
    config = {"keep_checkpoints": 1}
    codes, _ = launch({"config": config, "die_in": name, "die_at": at})
    assert codes == [-9]
    run_dir = tmp_path / "run"
    assert folder.find_latest(run_dir) is not None
    assert load_file(run_dir / "checkpoints" / "latest-checkpoint.safetensors")
    codes, result = launch({"config": config})
    assert codes == [0] and result["step"] == 8
    _assert_whole(run_dir, 8)
    killed = load_file(tmp_path / "result.json.safetensors")
    other = trainer(run_id="undisturbed")
    other.fit()
    undisturbed = load_file(other.run_dir / "checkpoints" / "latest-checkpoint.safetensors")
    assert all(torch.equal(killed[key], undisturbed[key]) for key in undisturbed)
    steps = [json.loads(row)["Finetune/Step"] for row in (run_dir / "run.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]  # Two validations; no step is lost, none is there twice


def test_sizes_are_shown_for_people() -> None:
    assert [files.show_bytes(n) for n in (12, 1500, 81e9, 2.5e12)] == ["12 bytes", "1.5 kB", "81.0 GB", "2.5 TB"]
