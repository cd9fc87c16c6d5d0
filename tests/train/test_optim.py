from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from prismatic.conf.models import ModelConfig
from prismatic.train.optim import build_optimizer, build_schedule
from tests.train.fake_run import FakeVLM

STAGE = dataclasses.replace(ModelConfig().stage("finetune"), weight_decay=0.1, learning_rate=0.5)


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def _rates(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return rates


def test_biases_norms_and_frozen_weights_are_treated_apart() -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    optimizer = build_optimizer(vlm, STAGE)
    names = {id(p): n for n, p in vlm.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert "projector.weight" in decayed and "llm_backbone.layers.0.0.weight" in decayed
    assert {"projector.bias", "llm_backbone.norm.weight", "llm_backbone.norm.bias"} <= others
    assert not any(name.startswith("vision_backbone") for name in decayed | others)


def test_nothing_to_train_is_an_error() -> None:
    vlm = FakeVLM().requires_grad_(False)
    with pytest.raises(ValueError, match="--stage finetune: nothing in this model is trainable"):
        build_optimizer(vlm, STAGE)


def test_warmup_and_cosine_equal_transformers() -> None:
    ours = _rates(build_schedule(_optimizer(), "linear-warmup+cosine-decay", 20, 0.16), 20)
    theirs = _rates(get_cosine_schedule_with_warmup(_optimizer(), 3, 20), 20)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert ours[0] == 0.0 and ours[3] == 0.5


def test_constant_keeps_its_rate_after_the_warmup() -> None:
    assert _rates(build_schedule(_optimizer(), "constant", 10, 0.2), 5) == [0.0, 0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("done", [0, 1, 7, 19])
def test_schedule_goes_on_where_it_stood(done: int) -> None:
    whole = _rates(build_schedule(_optimizer(), "linear-warmup+cosine-decay", 20, 0.3), 20)
    assert _rates(build_schedule(_optimizer(), "linear-warmup+cosine-decay", 20, 0.3, done), 20 - done) == whole[done:]


def test_unknown_schedule_is_named_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"'linear-warmup' .*did you mean 'linear-warmup\+cosine-decay'"):
        build_schedule(_optimizer(), "linear-warmup", 20, 0.3)
