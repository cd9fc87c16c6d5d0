"""A whole run, from annotation file to weights, stopped at any step and gone on with, is the run that never stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prismatic import dist
from prismatic.train import checkpoint, folder, staging
from prismatic.train.errors import TrainingError
from prismatic.train.trainer import Trainer
from tests.test_golden import _write_data

Make = Callable[..., Trainer]
STEPS = 20
FLAGS = (
    *"--model.type tiny-video --stage finetune --model.num_frames 2 --model.finetune_global_batch_size 2".split(),
    *"--model.finetune_per_device_batch_size 1 --model.finetune_max_steps 20 --model.finetune_epochs 4".split(),
    *"--dataset.type custom --dataset.packing true --seed 3 --device cpu --dataset.sampler random".split(),
    *("--dataset.finetune_stage_components", '["a.json", "media"]', "--trackers", '["jsonl"]'),
)


@pytest.fixture
def build(tmp_path: Path, world: dist.World) -> Make:
    """build(run_id, more flags) -> a trainer of the tiny model on drawn clips; it notes what it was given in `.ids`."""
    from prismatic.build import build_trainer
    from prismatic.conf import cli
    from prismatic.conf.run import PretrainConfig

    torch.set_num_threads(1)
    _write_data(tmp_path)

    def make(run_id: str, *more: str) -> Trainer:
        places = ("--dataset.dataset_root_dir", str(tmp_path), "--run_root_dir", str(tmp_path), "--run_id", run_id)
        cfg = cli.parse(PretrainConfig, [*FLAGS, *places, *more])
        cfg.validate()
        trainer = build_trainer(cfg, world)
        trainer.ids, original = [], trainer.train_step

        def step(batches: list, *args: float) -> int | None:
            trainer.ids.append([i for batch in batches for i in batch.ids])
            return original(batches, *args)

        trainer.train_step = step
        return trainer

    return make


def _stop_after(trainer: Trainer, step: int) -> None:
    def look(*_: object) -> None:
        if trainer.at.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.optimizer.register_step_post_hook(look)


def _assert_same(one: Trainer, two: Trainer, steps: int) -> None:
    assert one.ids == two.ids[STEPS - steps :] and len(one.ids) == steps
    trees = [dict(staging.leaves(checkpoint.contents(t.vlm, t.optimizer))) for t in (one, two)]
    assert trees[0].keys() == trees[1].keys()
    assert all(torch.equal(staging.local(trees[0][key]), staging.local(trees[1][key])) for key in trees[0])
    keys = ("Step", "Loss", "Loss (Raw)", "Learning Rate", "Gradient Norm")
    rows = [[json.loads(line) for line in (t.run_dir / f"{t.run_dir.name}.jsonl").open()] for t in (one, two)]
    curves = [[tuple(row.get(f"Finetune/{key}") for key in keys) for row in of] for of in rows]
    assert curves[0][-steps:] == curves[1][-steps:]
    # Random numbers after it are those of the other, too.
    assert one.at == two.at and one.losses == two.losses


def test_a_resume_of_a_resume_is_bit_for_bit_the_run_that_never_stopped(build: Make) -> None:
    """Stopped in the second epoch and at an end of one; read without and with processes of their own; packed."""
    whole = build("whole", "--dataset.num_workers", "0")
    assert whole.fit() is None
    for stop, workers in ((7, "2"), (12, "0")):
        part = build("run", "--dataset.num_workers", workers)
        _stop_after(part, stop)
        assert part.fit() is signal.SIGTERM and part.at.step == stop
    last = build("run", "--dataset.num_workers", "2")
    assert last.fit() is None
    _assert_same(last, whole, STEPS - 12)
    rows = (last.run_dir / "run.jsonl").read_text().splitlines()
    assert [json.loads(row)["Finetune/Step"] for row in rows] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_stop_is_bit_for_bit_the_run_that_never_stopped(build: Make, workers: str) -> None:
    whole = build("whole", "--checkpoint_interval", "1", "--keep_checkpoints", "99")
    assert whole.fit() is None
    steps = sorted(path.name for path in folder.resumable(whole.run_dir))
    assert len(steps) == STEPS
    for stop in range(1, STEPS):
        source = whole.run_dir / "checkpoints" / f"step-{stop:06d}"
        part = build(f"run-{stop}", "--resume", str(source), "--dataset.num_workers", workers)
        assert part.fit() is None
        _assert_same(part, whole, STEPS - stop)


def test_another_run_goes_on_from_a_finished_one_with_its_tokenizer(build: Make, tmp_path: Path) -> None:
    first = build("first", "--model.finetune_max_steps", "4")
    assert first.fit() is None
    rows = json.loads((tmp_path / "a.json").read_text())
    for row in rows:
        row["conversations"][-1]["value"] = "Quite other words than those before: zigzag, quartz, sphinx."
    (tmp_path / "b.json").write_text(json.dumps(rows))
    more = ("--resume", str(first.run_dir), "--dataset.finetune_stage_components", '["b.json", "media"]')
    with pytest.raises(TrainingError, match="is of step 4, and this run has 4: there is nothing to go on with"):
        build("idle", *more, "--model.finetune_max_steps", "4").fit()
    second = build("second", *more, "--model.finetune_max_steps", "6")
    assert second.fit() is None and second.at.step == 6 and len(second.ids) == 2
    tokenizers = [(t.run_dir / "llm_backbone" / "tokenizer.json").read_text() for t in (first, second)]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_of_one_seed_are_bit_for_bit_the_same(build: Make, threads: int) -> None:
    """With any fixed number of threads; who reads, and how many batches are ready, changes nothing."""
    one = build("one", "--dataset.num_workers", "0")
    two = build("two", "--dataset.num_workers", "2", "--dataset.prefetch", "8")
    torch.set_num_threads(threads)
    assert one.fit() is None and two.fit() is None
    torch.set_num_threads(1)
    _assert_same(one, two, STEPS)


@pytest.mark.parametrize("stop", [3, 4, 6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 2, 5, 7))])
def test_bf16_weights_resume_bit_for_bit(trainer: Make, stop: int) -> None:
    options = {"dtype": torch.bfloat16, "stage": "full-finetune", "dropout": 0.3}
    whole = trainer(run_id="whole", **options)
    assert whole.fit() is None
    first = trainer(**options)
    first.train_loader.events = {stop: [signal.SIGTERM]}
    assert first.fit() is signal.SIGTERM and first.at.step == stop
    second = trainer(model_seed=1, **options)
    assert second.fit() is None and second.losses == whole.losses
    trees = [dict(staging.leaves(checkpoint.contents(t.vlm, t.optimizer))) for t in (second, whole)]
    assert all(torch.equal(staging.local(trees[0][key]), staging.local(trees[1][key])) for key in trees[1])
    assert {value.dtype for path, value in trees[0].items() if path[-1] == "exp_avg"} == {torch.bfloat16}
