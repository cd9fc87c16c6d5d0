"""What a run is told about memory: before it starts, by trying the longest batch, and when memory runs out."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prismatic import dist
from prismatic.build import build_vlm
from prismatic.build_data import build_dataset, read_annotations
from prismatic.conf.data import DatasetConfig
from prismatic.conf.models import ModelConfig
from prismatic.conf.run import PretrainConfig
from prismatic.train import weights
from prismatic.train.errors import TrainingError
from prismatic.train.memory import longest
from prismatic.train.memory.forecast import Forecast, memory_told
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]


def _rows(answers: list[str]) -> list[dict[str, Any]]:
    turns = [[{"from": "human", "value": "<video>\nWhat is it?"}, {"from": "gpt", "value": text}] for text in answers]
    return [{"id": str(i), "video": "a.mp4", "conversations": c} for i, c in enumerate(turns)]


@pytest.fixture
def cfg(tmp_path: Path) -> PretrainConfig:
    (tmp_path / "a.json").write_text(json.dumps(_rows(["a cat"] * 6 + ["a dog " * 20, "a bird"])))
    data = DatasetConfig.get_choice_class("custom")(
        dataset_root_dir=tmp_path, finetune_stage_components=(Path("a.json"), Path("."))
    )
    model = ModelConfig.get_choice_class("tiny-video")(
        finetune_global_batch_size=4, finetune_per_device_batch_size=2, num_frames=3
    )
    return PretrainConfig(model=model, dataset=data, run_root_dir=tmp_path, device="cpu")


def _forecast(cfg: PretrainConfig, packing: bool = True, processes: int = 1) -> Forecast:
    records = read_annotations(cfg.dataset, cfg.stage)
    vlm = build_vlm(cfg.model, texts=lambda: ["what is it? a cat a dog a bird"])
    vlm.freeze(cfg.stage)
    dataset = build_dataset(cfg.dataset, records, cfg=cfg, vlm=vlm, train=True)
    world = dist.World(0, 0, processes, torch.device("cpu"), "gloo", processes)
    return Forecast(cfg, vlm, dataset, world, packing)


def test_the_largest_batch_is_the_one_with_the_longest_row(cfg: PretrainConfig) -> None:
    packed, padded = _forecast(cfg).plan.batch, _forecast(cfg, packing=False).plan.batch
    assert packed.rows == 1 and packed.frames == (3, 3) == padded.frames
    assert padded.rows == 2 and padded.length < packed.length < 2 * padded.length
    assert packed.labels >= 20


def test_a_run_that_does_not_fit_is_warned_of_with_what_to_type(
    cfg: PretrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    forecast = _forecast(cfg)
    with caplog.at_level(logging.WARNING, logger="prismatic"):
        forecast.warn()
        assert "out of memory" not in caplog.text  # The memory of this machine is more than 30 MiB
        cfg.device_memory = 0.9 * forecast.plan.needed / 2**30
        small = _forecast(cfg)
        small.warn()
    assert "expected to run out of memory" in caplog.text
    assert "to fit             with --model.finetune_per_device_batch_size 1" in caplog.text
    assert small.lines()[-2].startswith("to fit ")


def test_without_a_device_to_plan_for_a_size_is_asked_for(cfg: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = _forecast(cfg)
    forecast.capacity = None
    assert "--device_memory 80" in forecast.lines()[-1]


def test_memory_that_runs_out_says_what_to_type(cfg: PretrainConfig) -> None:
    forecast = _forecast(cfg)
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError("none")):
        with pytest.raises(TrainingError, match=r"step 7: out of memory .*planned were .* try --model.fine"):
            with memory_told(forecast, lambda: "step 7"):
                raise error
    with pytest.raises(TrainingError, match=r"lower --model.finetune_per_device_batch_size"):
        with memory_told(None, lambda: "step 7"):
            torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="something else"), memory_told(forecast, lambda: "step 7"):
        raise RuntimeError("something else")


def test_a_run_that_runs_out_of_memory_ends_with_the_advice(trainer: Make, cfg: PretrainConfig) -> None:
    run = trainer(run_id="run")
    run.forecast = _forecast(cfg)

    def exhausted(*_: Any) -> None:
        if run.at.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    run.vlm.llm_backbone.layers[0].register_forward_hook(exhausted)
    with pytest.raises(TrainingError, match=r"step 3: out of memory .* try --model.finetune_per_device_batch_size 1"):
        run.fit()


def test_trying_the_longest_batch_first_leaves_no_trace(trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    plain = trainer(run_id="plain", dropout=0.3, stage="full-finetune")
    assert plain.fit() is None
    with caplog.at_level(logging.INFO, logger="prismatic"):
        tried = trainer(run_id="tried", dropout=0.3, stage="full-finetune", longest_batch_first="always")
        state = torch.get_rng_state()
        before = {k: v.clone() for k, v in tried.vlm.state_dict().items()}
        longest.go_first(tried)
        assert torch.equal(torch.get_rng_state(), state)
        after = tried.vlm.state_dict()
        assert all(torch.equal(_local(after[key]), _local(value)) for key, value in before.items())
        assert all(p.grad is None for p in tried.vlm.parameters()) and not tried.optimizer.state
        assert tried.fit() is None
    assert "the longest batch first: 20 positions, 2 frames" in caplog.text
    assert tried.losses == plain.losses
    expected, got = (weights.gather(run.vlm, run.trained_modules) for run in (plain, tried))
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_a_longest_batch_that_does_not_fit_stops_before_the_first_step(trainer: Make, cfg: PretrainConfig) -> None:
    run = trainer(run_id="run", longest_batch_first="always")
    run.forecast = copy.copy(_forecast(cfg))

    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    run.vlm.llm_backbone.layers[0].register_forward_hook(exhausted)
    with pytest.raises(TrainingError, match=r"tried before the first step: out of memory .* try --model"):
        run.fit()
    assert run.at.step == 0


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
