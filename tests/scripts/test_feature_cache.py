"""Training with a feature cache, by the scripts: the same losses, whoever filled it and however often it broke."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.scripts.conftest import ROOT, Script, metric_rows
from tests.video.files import write_video

ROWS = 10
FRAMES = 8 * 3 + 1 + 2
STEPS = 5  # an epoch of steps of two examples
MODEL = (
    *("--model.type", "tiny-video", "--stage", "finetune", "--model.num_frames", "3"),
    *("--model.finetune_per_device_batch_size", "1", "--device", "cpu", "--dataset.type", "custom"),
    *("--dataset.finetune_stage_components", '["rows.json", "media"]', "--dataset.num_workers", "0"),
)
TRAIN = (
    *(*MODEL, "--model.finetune_global_batch_size", "2", "--model.finetune_epochs", "2", "--trackers", '["jsonl"]'),
    *("--model.finetune_learning_rate", "1e-3"),
)
EXACT = ("--dataset.feature_cache_dtype", "float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows: videos, an image, a list of frames, a folder of frames, two clips in one row, and text alone."""
    root = tmp_path_factory.mktemp("cached")
    media = root / "media"
    media.mkdir()
    for i in range(7):
        write_video(media / f"{i}.mp4", "mpeg4", 6 + 3 * i)
    for i in range(4):
        (media / "folder").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(media / "folder" / f"{i}.png")
    kinds = [{"video": f"{i}.mp4"} for i in range(5)]
    kinds += [{"image": "folder/3.png"}, {"frames": ["folder/1.png", "folder/0.png"]}, {"video": "folder"}]
    kinds += [{"video": ["5.mp4", "6.mp4"]}, {}]
    rows = []
    for i, kind in enumerate(kinds):
        question = "<video>\n" * (2 if i == 8 else 1 if kind else 0) + "What happens?"
        answer = f"The clip shows number {i}, {'and ' * i}then it ends."
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"row-{i}", **kind, "conversations": turns})
    assert len(rows) == ROWS
    (root / "rows.json").write_text(json.dumps(rows))
    return root


class Run(NamedTuple):
    """What a run in this process left. encoded: frames that went through the vision tower while training."""

    losses: list[float]
    log: str
    encoded: int


Train = Callable[..., Run]


def _train(data: Path, runs: Path, run_id: str, *flags: str) -> Run:
    """Train in this process with the flags of TRAIN and more."""
    from prismatic import dist
    from prismatic.build import build_trainer
    from prismatic.conf import cli
    from prismatic.conf.run import PretrainConfig

    places = ("--dataset.dataset_root_dir", str(data), "--run_root_dir", str(runs))
    cfg = cli.parse(PretrainConfig, [*TRAIN, *places, "--run_id", run_id, *flags])
    cfg.validate()
    frames: list[int] = []
    trainer = build_trainer(cfg, dist.start("cpu"))
    # From the first batch on: the measurement at the start encodes clips as well.
    trainer.vlm.register_forward_pre_hook(lambda *_: frames.append(0))
    trainer.vlm.vision_backbone.register_forward_pre_hook(lambda _, args: frames.append(len(args[0])))
    assert trainer.fit() is None
    dist.stop(trainer)
    losses = [row["Finetune/Loss (Raw)"] for row in metric_rows(runs / run_id)]
    return Run(losses, "", sum(frames[frames.index(0) :]))


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run without a cache."""
    return _train(data, tmp_path_factory.mktemp("plain"), "plain")


@pytest.fixture
def train(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Train:
    """Trains in this process, below tmp_path/runs."""

    def run(run_id: str, *flags: str, root: Path = data) -> Run:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="prismatic"):
            done = _train(root, tmp_path / "runs", run_id, *flags)
        return done._replace(log="\n".join(caplog.messages))

    return run


def _fill(data: Path, folder: Path, *flags: str) -> str:
    """`preprocess.py --cache_features` in this process."""
    from prismatic import dist
    from prismatic.conf import cli
    from prismatic.conf.run import PreprocessConfig
    from prismatic.features import cache_features

    places = ("--dataset.dataset_root_dir", str(data), "--cache_features", str(folder))
    cfg = cli.parse(PreprocessConfig, [*MODEL, *places, *EXACT, *flags])
    cfg.validate()
    world = dist.start("cpu")
    try:
        return cache_features(cfg, world)
    finally:
        dist.stop()


def test_losses_are_those_of_the_uncached_run(train: Train, plain: Run, data: Path, tmp_path: Path) -> None:
    assert len(plain.losses) == 2 * STEPS
    folder = ("--dataset.feature_cache", str(tmp_path / "a"))

    filling = train("filling", *folder, *EXACT)
    assert filling.losses == plain.losses
    assert "epoch 1: 0 of 10 clips out of the cache, 10 added" in filling.log
    assert "epoch 2: 10 of 10 clips out of the cache" in filling.log
    # Each clip once: 8 of 3 frames, an image, a list of 2. And a black frame an epoch where text stands alone.
    assert FRAMES <= filling.encoded <= FRAMES + 2 < plain.encoded

    assert "10 clips: 0 were there, 10 encoded" in _fill(data, tmp_path / "b")
    entries = {p.name: p.read_bytes() for p in (tmp_path / "a").rglob("*.feat")}
    assert entries == {p.name: p.read_bytes() for p in (tmp_path / "b").rglob("*.feat")} and len(entries) == 10
    ready = train("ready", "--dataset.feature_cache", str(tmp_path / "b"), *EXACT, "--dataset.num_workers", "2")
    assert ready.losses == plain.losses and ready.encoded <= 2
    assert "10 clips x" in ready.log and "decode and encode" in ready.log

    half = train("half", "--dataset.feature_cache", str(tmp_path / "c"))
    np.testing.assert_allclose(half.losses, plain.losses, atol=1e-3)
    assert half.losses != plain.losses


def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(train: Train, data: Path, tmp_path: Path) -> None:
    """In bf16 a kept feature is not the computed one; a clip must give the same whether the cache has it or not."""
    whole = train("whole", "--dataset.feature_cache", str(tmp_path / "a"))
    short = ("--checkpoint_interval", "3", "--keep_checkpoints", "9", "--dataset.feature_cache", str(tmp_path / "b"))
    train("cut", *short)
    first, *later = sorted(p for p in (tmp_path / "runs" / "cut" / "checkpoints").glob("step-*") if p.is_dir())
    for path in later:
        shutil.rmtree(path)
    again = train("cut", *short)
    assert again.losses == whole.losses and f"from {first}: 3 of 10 steps" in again.log
    # Another run goes on from there: the tower is then that of the checkpoint, not the one of its own seed.
    other = train("other", "--seed", "8", "--resume", str(first), "--dataset.feature_cache", str(tmp_path / "b"))
    assert "10 entries there" in other.log and "added" not in other.log and other.encoded <= 2
    [path.unlink() for path in list((tmp_path / "a").rglob("*.feat"))[:5]]
    mixed = train("mixed", "--dataset.feature_cache", str(tmp_path / "a"))
    assert mixed.losses == whole.losses and "5 added" in mixed.log


def test_what_changed_is_computed_again(train: Train, plain: Run, data: Path, tmp_path: Path) -> None:
    """Another tower, a damaged entry, a file with other content: each is seen, counted, and never served."""
    folder = tmp_path / "cache"
    flags = ("--dataset.feature_cache", str(folder), *EXACT)
    _fill(data, folder)
    assert "epoch 1: 0 of 10 clips" in train("seed", *flags, "--seed", "8").log
    for path in (folder / "entries").rglob("*.feat"):
        content = bytearray(path.read_bytes())
        content[200] ^= 4
        path.write_bytes(content)
    damaged = train("damaged", *flags)
    # Those of the other seed are damaged too, and are nobody's business here.
    assert damaged.losses == plain.losses and "10 damaged entries computed again" in damaged.log
    other = tmp_path / "other"
    shutil.copytree(data, other)
    before = (other / "media" / "2.mp4").stat()
    write_video(other / "media" / "2.mp4", "mpeg4", 40)
    os.utime(other / "media" / "2.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = train("changed", *flags, root=other)
    assert "epoch 1: 9 of 10 clips out of the cache, 1 added" in changed.log
    assert changed.losses == train("changed-plain", root=other).losses != plain.losses


def test_validation_shares_the_cache(train: Train, plain: Run, data: Path, tmp_path: Path) -> None:
    val = [flag.replace("--dataset", "--val_dataset") for flag in MODEL[MODEL.index("--dataset.type") :]]
    flags = (*val, "--val_dataset.dataset_root_dir", str(data), "--validation_interval", "4")
    cached = ("--val_dataset.feature_cache", str(tmp_path / "c"), "--val_dataset.feature_cache_dtype", "float32")
    kept = train("kept", *flags, *cached, "--dataset.feature_cache", str(tmp_path / "c"), *EXACT)
    only = train("only", *flags, *cached)
    assert kept.losses == only.losses == plain.losses
    ours, theirs = (re.findall(r"validation loss [\d.]+", run.log) for run in (kept, only))
    assert ours == theirs and len(ours) >= 2
    assert kept.encoded < only.encoded


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--stage", "full-finetune"), "use --stage finetune"),
        (("--dataset.augmentations", '["color-jitter"]'), "change the pixels in each epoch"),
        (("--dataset.sampler", "random"), "--dataset.sampler random draws other frames"),
        (("--dataset.feature_cache_limit", "0"), "must be greater than 0 GB"),
        (("--dataset.feature_cache", "s3://bucket/features"), "is a local folder, not a URL"),
    ],
)
def test_where_it_cannot_be_right_it_is_refused(
    refused: Callable[..., str], data: Path, tmp_path: Path, flags: tuple[str, ...], expected: str
) -> None:
    places = ("--dataset.dataset_root_dir", str(data), "--run_root_dir", str(tmp_path))
    assert expected in refused("pretrain.py", *TRAIN, *places, "--dataset.feature_cache", str(tmp_path / "c"), *flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--cache_features", "true"), "--dataset.feature_cache FOLDER"),
        (("--cache_features", "a", "--dataset.feature_cache", "b"), "two folders"),
        (("--model.num_frames", "3"), "--model goes with --cache_features"),
        (("--cache_features", "a", "--stage", "full-finetune"), "use --stage finetune"),
    ],
)
def test_preprocess_refuses_what_it_would_ignore(
    refused: Callable[..., str], flags: tuple[str, ...], expected: str
) -> None:
    assert expected in refused("preprocess.py", *flags)


def test_two_ranks_share_one_cache(call: Script, plain: Run, data: Path, tmp_path: Path) -> None:
    """One rank has features where the other has frames, at every step: they must not wait for each other."""
    folder = tmp_path / "cache"
    _fill(data, folder)
    for path in sorted(folder.rglob("*.feat"))[::2]:
        path.unlink()
    places = ("--dataset.dataset_root_dir", str(data), "--run_root_dir", str(tmp_path / "runs"))
    flags = ("--dataset.feature_cache", str(folder), *EXACT, "--run_id", "two")
    done = call("pretrain.py", *TRAIN, *places, *flags, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "5 added" in done.stderr and "epoch 2: 10 of 10 clips" in done.stderr
    rows = metric_rows(tmp_path / "runs" / "two")
    np.testing.assert_allclose([row["Finetune/Loss (Raw)"] for row in rows], plain.losses, rtol=1e-5)


def _fork_script(args: tuple[str, ...]) -> int:
    """`preprocess.py` in a child of this process, which has everything imported: it begins to build in a second."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.argv = ["preprocess.py", *args]
        try:
            runpy.run_path(str(ROOT / "scripts" / "preprocess.py"), run_name="__main__")
        finally:
            os._exit(0)
    return child


@pytest.mark.slow
def test_kill_minus_nine_while_the_script_builds(data: Path, tmp_path: Path) -> None:
    """30 scripts, two at once: what is there is right at any moment, and in the end nothing is missing."""
    rng = random.Random(0)
    folder, good = tmp_path / "cache", tmp_path / "good"
    _fill(data, good)
    expected = {path.name: path.read_bytes() for path in good.rglob("*.feat")}
    args = (*MODEL, *EXACT, "--dataset.dataset_root_dir", str(data), "--cache_features", str(folder))
    cut = 0
    for _ in range(15):
        children = [_fork_script(args) for _ in range(2)]
        began = time.monotonic()
        while not list(folder.rglob("*.feat")):
            assert time.monotonic() - began < 120, "neither script has written anything"
            time.sleep(0.001)
        for child in children:
            time.sleep(rng.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        found = {path.name: path.read_bytes() for path in folder.rglob("*.feat")}
        assert found.items() <= expected.items()
        cut += 0 < len(found) < len(expected)
        for name in found:
            next(folder.rglob(name)).unlink()
    assert cut >= 5, f"only {cut} of 15 rounds were cut short while they built"
    assert "0 were there, 10 encoded" in _fill(data, folder)
    assert {path.name: path.read_bytes() for path in folder.rglob("*.feat")} == expected
