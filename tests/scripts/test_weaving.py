"""Training on weaves as a user does: woven while training, or from a file for each epoch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prismatic.conf.webvid import CatalogConfig, WeaveConfig
from prismatic.data.moving_shapes_render import render
from prismatic.webvid.catalog import catalog
from prismatic.webvid.weave import weave
from tests.scripts.conftest import TINY, Script, metric_rows

LOSS = "Full-finetune/Loss (Raw)"
WEAVE = (
    *("--dataset.weave.videos_per_example", "2", "--dataset.weave.curriculum", "[1]"),
    *("--dataset.weave.total_frames", "4", "--dataset.weave.form", "ordered"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training clips: two steps an epoch as single clips, one as pairs."""
    root = tmp_path_factory.mktemp("weaving")
    render(root / "moving-shapes", seed=7, num_train=8, num_val=4, num_workers=1)
    return root


def _args(root: Path, runs: Path, run_id: str, *more: str) -> tuple[str, ...]:
    data = ("--dataset.type", "moving-shapes", "--dataset.dataset_root_dir", str(root))
    return (*TINY, *data, "--run_root_dir", str(runs), "--run_id", run_id, *more)


def test_online_weaving_resumes_bit_for_bit_on_two_ranks_too(root: Path, tmp_path: Path, call: Script) -> None:
    """Epoch 0 has two steps of single clips, epochs 1 and 2 one step of pairs each."""
    steps = ("--model.finetune_max_steps", "4", "--keep_checkpoints", "9", "--checkpoint_interval", "1")
    done = call("pretrain.py", *_args(root, tmp_path, "whole", *WEAVE, *steps))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 of 1, 4 of 2" in done.stderr
    whole = [row[LOSS] for row in metric_rows(tmp_path / "whole")]
    assert len(whole) == 4

    # As after a kill behind step 1, amid epoch 0, and behind step 3: the checkpoints of the later steps are not there.
    for name, step, ranks in (("resumed", 1, 1), ("elastic", 3, 2)):
        shutil.copytree(tmp_path / "whole", tmp_path / name, symlinks=True)
        for folder in (tmp_path / name / "checkpoints").glob("step-*"):
            if int(folder.name[5:11]) > step:
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        (tmp_path / name / "whole.jsonl").rename(tmp_path / name / f"{name}.jsonl")
        again = call("pretrain.py", *_args(root, tmp_path, name, *WEAVE, *steps), ranks=ranks)
        assert again.returncode == 0, again.stderr[-3000:]
        assert f"{step} of 4 steps are done" in again.stderr
        losses = [row[LOSS] for row in metric_rows(tmp_path / name)]
        assert losses == (whole if ranks == 1 else pytest.approx(whole, rel=1e-5))
    ours = load_file(tmp_path / "resumed/checkpoints/latest-checkpoint.safetensors")
    theirs = load_file(tmp_path / "whole/checkpoints/latest-checkpoint.safetensors")
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


def test_a_file_for_each_epoch(root: Path, tmp_path: Path, call: Script) -> None:
    folder = root / "moving-shapes"
    rows = json.loads((folder / "train.json").read_text())
    clusters = [{"video_id": row["id"], "caption": "", "cluster": str(i // 2)} for i, row in enumerate(rows)]
    (tmp_path / "clusters.json").write_text(json.dumps(clusters))
    table = tmp_path / "catalog.parquet"
    catalog(CatalogConfig(videos=folder / "videos", captions=folder / "train.csv", output=table))
    weave(
        WeaveConfig(
            clusters=tmp_path / "clusters.json",
            catalog=table,
            media_root=folder,
            total_frames=4,
            form="order-question",
            output=folder / "woven.json",
            epochs=2,
        )
    )
    files = '[["moving-shapes/woven_epoch0.json", "moving-shapes/woven_epoch1.json"], "moving-shapes"]'
    args = _args(root, tmp_path, "files", "--dataset.finetune_stage_components", files)
    done = call("pretrain.py", *args, "--model.finetune_epochs", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(metric_rows(tmp_path / "files")) == 3


def test_refusals(root: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    args = _args(root, tmp_path, "refused")
    assert "--dataset.weave.form does nothing without" in refused(
        "pretrain.py", *args, "--dataset.weave.form", "ordered"
    )
    assert "lists are written in brackets" in refused("pretrain.py", *args, "--dataset.weave.curriculum", "one")
    val = ("--val_dataset.type", "moving-shapes", "--val_dataset.dataset_root_dir", str(root))
    assert "are also in the validation data" in refused("pretrain.py", *args, *WEAVE, *val)
    assert "webvid.py weave" in refused(
        *("evaluate.py", "--model_path", "x", "--dataset.type", "moving-shapes-val"),
        *("--dataset.weave.videos_per_example", "2"),
    )
