"""The loop: what a step computes, where a run stops and goes on, and what is said when it cannot."""

from __future__ import annotations

import copy
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from prismatic.train import weights
from prismatic.train.errors import TrainingError
from prismatic.train.skips import SkipAccount
from prismatic.train.trainer import Trainer
from tests.train.fake_run import FakeLoader, FakeVLM

Make = Callable[..., Trainer]


def _rows(trainer: Trainer, key: str) -> list:
    path = trainer.run_dir / f"{trainer.run_dir.name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in weights.gather(trainer.vlm, trainer.trained_modules).items()}


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_step_is_plain_adamw_on_the_mean_over_label_tokens(trainer: Make) -> None:
    run = trainer(model_finetune_max_steps=3, model_finetune_warmup_ratio=0.0, count=24)
    plain = FakeVLM()
    plain.freeze("finetune")
    decay = [p for p in plain.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in plain.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0}], 1e-2)
    losses = []
    plain.vision_backbone.eval()
    for step, batches in enumerate(FakeLoader(24, run.world, per_step=8, per_device=8).iterate(0)):
        out = plain(batches[0])  # The whole global batch at once
        loss = out.loss_sum / out.num_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*decay, *rest], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 3))).item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert run.fit() is None
    assert run.losses == pytest.approx(losses, rel=1e-6)
    for name, value in _weights(run).items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_device", [1, 4, 8])
def test_accumulation_changes_nothing(trainer: Make, per_device: int) -> None:
    one = trainer(run_id="one", model_finetune_per_device_batch_size=2)
    other = trainer(run_id="other", model_finetune_per_device_batch_size=per_device)
    one.fit()
    other.fit()
    assert other.losses == pytest.approx(one.losses, rel=1e-6)
    for name, value in _weights(one).items():
        torch.testing.assert_close(_weights(other)[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stop", range(1, 8))
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(trainer: Make, stop: int) -> None:
    options = {"dropout": 0.3, "frozen_modules": ["vision_backbone"]}
    whole = trainer(run_id="whole", **options)
    assert whole.fit() is None
    first = trainer(**options)
    first.train_loader.events = {stop: [signal.SIGTERM]}
    assert first.fit() is signal.SIGTERM and first.at.step == stop
    second = trainer(model_seed=1, **options)  # Other initial weights: all come from the checkpoint
    assert second.fit() is None
    assert _same(_weights(whole), _weights(second))
    names = {id(p): n for n, p in second.vlm.named_parameters()}
    theirs = dict(whole.vlm.named_parameters())
    for parameter, state in second.optimizer.state.items():
        expected = whole.optimizer.state[theirs[names[id(parameter)]]]
        for key, value in state.items():
            assert torch.equal(
                getattr(value, "_local_tensor", value), getattr(expected[key], "_local_tensor", expected[key])
            )
    for key in ("Step", "Loss", "Loss (Raw)", "Learning Rate", "Gradient Norm", "Validation Loss"):
        assert _rows(second, f"Finetune/{key}") == _rows(whole, f"Finetune/{key}"), key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_are_given_back(trainer: Make, number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    run = trainer()
    run.train_loader.events = {2: [number, number, signal.SIGTERM]}  # Further ones change nothing
    assert run.fit() is number
    assert (tmp_path / "run" / "checkpoints" / "step-000002" / "state.json").exists()
    assert load_file(tmp_path / "run" / "checkpoints" / "latest-checkpoint.safetensors")
    assert signal.getsignal(number) is before


def test_a_signal_ends_the_wait_for_data(trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    iterate = run.train_loader.iterate

    def hanging(*args: int, **options: int) -> Iterator[Any]:
        for number, step in enumerate(iterate(*args, **options)):
            if number == 2:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                time.sleep(60)
            yield step

    monkeypatch.setattr(run.train_loader, "iterate", hanging)
    began = time.monotonic()
    assert run.fit() is signal.SIGTERM and run.at.step == 2
    assert time.monotonic() - began < 30


def test_signal_in_the_last_validation_leaves_it_to_the_next_start(trainer: Make) -> None:
    first = trainer()
    first.val_loader.events = {0: [signal.SIGTERM]}
    assert first.fit() is signal.SIGTERM and (first.at.step, first.at.epoch, first.at.step_in_epoch) == (4, 0, 4)
    second = trainer()
    assert second.fit() is None
    assert len(_rows(second, "Finetune/Validation Loss")) == 2
    names = [p.name for p in (second.run_dir / "checkpoints").glob("step-000004-*.safetensors")]
    assert len(names) == 1 and "epoch-01" in names[0]


def test_complete_run_is_not_trained_again(trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    first = trainer()
    first.fit()
    with caplog.at_level("INFO", logger="prismatic"):
        second = trainer()
        assert second.fit() is None
    assert "This run is complete" in caplog.text and "--run_id" in caplog.text
    assert _same(_weights(first), _weights(second))


def test_max_steps_goes_beyond_and_below_the_epochs(trainer: Make) -> None:
    for steps, epochs in ((3, 0), (11, 2)):
        run = trainer(run_id=f"run-{steps}", model_finetune_max_steps=steps)
        assert run.fit() is None
        assert (run.at.step, run.at.epoch) == (steps, epochs)
        assert len(_rows(run, "Finetune/Loss")) == steps
        assert len(_rows(run, "Finetune/Validation Loss")) == epochs + 1


def test_intervals(trainer: Make) -> None:
    run = trainer(validation_interval=3, checkpoint_interval=3, keep_checkpoints=9)
    run.fit()
    path = run.run_dir / "run.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["Finetune/Step"] for r in rows if "Finetune/Validation Loss" in r] == [3, 4, 6, 8]
    assert sorted(p.name for p in (run.run_dir / "checkpoints").glob("step-??????")) == [
        f"step-00000{n}" for n in (3, 4, 6, 8)
    ]


def test_validation_loss_is_the_mean_over_tokens_of_each_example_once(trainer: Make) -> None:
    run = trainer(model_finetune_max_steps=1)
    run.fit()
    loader = FakeLoader(5, run.world, per_step=5, per_device=5, shuffle=False)
    run.vlm.eval()
    out = run.vlm(next(loader.iterate(0))[0])
    assert run.validation_loss == pytest.approx(float(out.loss_sum.detach()) / int(out.num_tokens), rel=1e-6)


def test_frozen_modules_stay_in_eval_mode(trainer: Make) -> None:
    run = trainer(stage="finetune")
    before = copy.deepcopy(run.vlm.vision_backbone[1].running_mean)
    run.fit()
    assert torch.equal(run.vlm.vision_backbone[1].running_mean, before)
    assert run.vlm.projector.training and not run.vlm.vision_backbone.training


def test_loss_that_is_no_number_names_the_samples_and_changes_nothing(trainer: Make) -> None:
    run = trainer()
    row = next(FakeLoader(30, run.world, per_step=8, per_device=2).iterate(0, 2))[1].ids
    run.vlm.poison = row[0]
    seen = []
    run.optimizer.register_step_post_hook(lambda *_: seen.append(_weights(run)))
    with pytest.raises(TrainingError) as caught:
        run.fit()
    text = str(caught.value)
    assert text.startswith("step 3: loss nan") and f"Samples concerned: {row[0]}, {row[1]}." in text
    assert "lower --model.finetune_learning_rate 0.01" in text and "Last checkpoint: none" in text
    assert len(seen) == 2 and _same(seen[-1], _weights(run))


def test_step_without_label_tokens_is_an_error(trainer: Make) -> None:
    run = trainer()
    run.train_loader.unlabelled = True
    with pytest.raises(TrainingError, match=r"step 1: none of its samples \(row-\d+, .* --model.llm_max_length 512"):
        run.fit()


def test_empty_data_is_an_error(trainer: Make) -> None:
    with pytest.raises(TrainingError, match=r"--dataset.type moving-shapes is empty"):
        trainer(count=0)


def test_skips_are_listed_and_stop_the_run_above_the_share(trainer: Make) -> None:
    run = trainer(count=32)
    run.train_loader.broken = {3}
    (run.run_dir / "skipped.jsonl").write_text('{"id": "stale"}\n')  # Of an attempt that got to no checkpoint
    run.skips._max_share = 0.05  # 1 of 32
    assert run.fit() is None
    rows = [json.loads(line) for line in (run.run_dir / "skipped.jsonl").read_text().splitlines()]
    assert [(r["id"], r["source"], r["reason"]) for r in rows] == [("row-3", "rows.json, row 3", "it is empty")] * 2
    assert _rows(run, "Finetune/Skipped")[-1] == 2
    assert "stale" not in (run.run_dir / "skipped.jsonl").read_text()
    again = trainer(run_id="again", count=32)
    again.train_loader.broken = {3, 4}
    again.skips._max_share = 0.05
    with pytest.raises(TrainingError, match=r"2 of 32 samples were skipped, .* --dataset.max_skipped_share 0.05"):
        again.fit()


def test_few_skips_at_the_start_of_a_long_run_are_no_reason_to_stop(trainer: Make) -> None:
    run = trainer(count=32)
    run.skips._max_share = 0.05
    loader = FakeLoader(8, run.world, per_step=8, per_device=8)
    loader.broken = {0}
    run.skips.add(next(loader.iterate(0)), seen=8, skipped=1)  # 1 of 8 is above 5 %, but 8 are too few to tell
    run.skips.add([], seen=8, skipped=0)
    with pytest.raises(TrainingError, match="1 of 16 samples"):
        run.skips.check()


def test_chance_does_not_stop_a_run_and_a_lost_folder_does_soon(tmp_path: Path) -> None:
    random, stopped = np.random.default_rng(0), {0.008: 0, 0.1: 0}
    for rate in stopped:
        for number in range(20):
            account = SkipAccount(tmp_path / f"{rate}-{number}.jsonl", 0.01)
            for step in range(100):
                bad = int(random.binomial(32, rate))
                account.seen += 32
                account.skipped += bad
                try:
                    account.check(early=True)
                except TrainingError:
                    stopped[rate] += step
                    break
            else:
                stopped[rate] += 100
    assert stopped[0.008] > 95 * 20 and stopped[0.1] < 10 * 20


def test_skips_of_the_validation_data_have_a_file_and_a_limit_of_their_own(trainer: Make) -> None:
    run = trainer()
    run.val_loader.broken = {2}
    with pytest.raises(TrainingError, match=r"1 of 8 samples .*--val_dataset.max_skipped_share 0 allows"):
        run.fit()
    again = trainer()
    again.val_loader.broken = {2}
    again.validation_skips["validation"]._max_share = 0.5
    again.fit()
    rows = [json.loads(line) for line in (run.run_dir / "skipped-validation.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["row-2"]  # Of the last validation
    assert again.skips.skipped == 0 and not (run.run_dir / "skipped.jsonl").exists()


def test_skips_after_the_checkpoint_are_not_listed_twice(trainer: Make) -> None:
    first = trainer(count=32)
    first.skips._max_share = 1.0
    first.train_loader.broken = set(range(0, 32, 3))
    first.train_loader.events = {5: [signal.SIGTERM]}
    assert first.fit() is signal.SIGTERM
    listed = (first.run_dir / "skipped.jsonl").read_text()
    (first.run_dir / "skipped.jsonl").write_text(listed + listed.splitlines()[0] + "\n" + '{"half')
    second = trainer(count=32)
    second.skips._max_share = 1.0
    second.train_loader.broken = first.train_loader.broken
    second.fit()
    lines = (second.run_dir / "skipped.jsonl").read_text().splitlines()
    assert len(lines) == second.skips.skipped == 22


def test_a_person_sees_sizes_progress_and_where_the_weights_are(
    trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="prismatic"):
        run = trainer()
        run.fit()
    text = caplog.text
    for part in (
        "30 examples, 5 for validation",
        "trains projector 272, llm_backbone",
        "8 examples a step = 1 process x 2 x 4 accumulated",
        "8 (4 an epoch)",
        "step 8/8  epoch 2  loss",
        "tok/s",
        "frames/s",
        "data wait",
        "left",
        "Done: 8 steps in 0:0",
        f"Weights: {run.run_dir}/checkpoints/latest-checkpoint.safetensors -> step-000008-epoch-02",
        f"scripts/generate.py --model_path {run.run_dir}",
    ):
        assert part in text, part
