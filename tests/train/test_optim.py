from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import get_cosine_schedule_with_warmup

from prismatic.conf.models import ModelConfig
from prismatic.train.optim import (
    OPTIMIZERS,
    build_optimizer,
    build_schedule,
    check_optimizer,
    check_patterns,
    freeze_matching,
    learning_rates,
)
from prismatic.train.trainer import check_stage
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


@pytest.mark.parametrize("stage", ["align", "finetune", "full-finetune"])
@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler_type", "train_strategy"])
def test_an_unknown_id_is_said_with_the_flag_of_the_stage(stage: str, name: str) -> None:
    part = "align" if stage == "align" else "finetune"
    with pytest.raises(ValueError, match=rf"'foo' for --model.{part}_{name}[ ;]"):
        check_stage(dataclasses.replace(STAGE, stage=stage, **{name: "foo"}))


def test_stable_then_a_straight_decay() -> None:
    rates = _rates(build_schedule(_optimizer(), "wsd", 20, 0.1, decay_ratio=0.25), 20)
    assert rates[:3] == [0.0, 0.25, 0.5] and set(rates[2:15]) == {0.5}
    assert rates[15:] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])


def test_each_pattern_has_a_rate_of_its_own_and_the_first_that_matches_decides() -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    rates = {"*layers.0.*": 1e-4, "llm_backbone.*": 1e-3}
    optimizer = build_optimizer(vlm, STAGE, rates)
    names = {id(p): n for n, p in vlm.named_parameters()}
    got = {names[id(p)]: (g["name"], g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    assert got["projector.weight"] == ("default", 0.5)
    assert got["llm_backbone.layers.0.0.weight"] == ("*layers.0.*", 1e-4)
    assert got["llm_backbone.layers.1.0.weight"] == ("llm_backbone.*", 1e-3)
    schedule = build_schedule(optimizer, "constant", 10, 0.2, done=1)
    assert learning_rates(optimizer) == pytest.approx(
        {"default": 0.25, "*layers.0.*": 0.5e-4, "llm_backbone.*": 0.5e-3}
    )
    optimizer.step()
    schedule.step()
    assert learning_rates(optimizer) == {"default": 0.5, **rates}


def test_freezing_by_pattern() -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    freeze_matching(vlm, ["*layers.0.*", "llm_backbone.embed*"])
    frozen = {name for name, p in vlm.named_parameters() if not p.requires_grad}
    assert {"llm_backbone.layers.0.0.weight", "llm_backbone.embed.weight"} <= frozen
    assert "llm_backbone.layers.1.0.weight" not in frozen and "projector.weight" not in frozen


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("projektor.*", "no weight .* 'projektor.*'; did you mean 'projector'"),
        ("*layers.7.*", "no weight .* named like llm_backbone.layers.0.0.weight.*stands for anything"),
        ("vision_backbone.*", "matches 4 weights.* none of them is trained"),
    ],
)
def test_a_pattern_without_effect_is_an_error(pattern: str, text: str) -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    with pytest.raises(ValueError, match=f"--model.freeze: .*{text}"):
        freeze_matching(vlm, [pattern])
    with pytest.raises(ValueError, match=f"--model.learning_rates: .*{text}"):
        check_patterns(vlm, {pattern: 1.0})


def test_names_are_those_from_before_layers_were_wrapped() -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    vlm.llm_backbone.layers[0] = checkpoint_wrapper(vlm.llm_backbone.layers[0])
    optimizer = build_optimizer(vlm, STAGE, {"llm_backbone.layers.0.0.*": 1e-4})
    assert sum(p.numel() for p in optimizer.param_groups[-2]["params"]) == 256


def test_what_an_optimizer_needs_is_said_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    check_optimizer(STAGE)
    with pytest.raises(ValueError, match="did you mean 'adamw-8bit'"):
        check_optimizer(dataclasses.replace(STAGE, optimizer="adam-8bit"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package torchao: pip install 'prismatic\[optimizers\]'"):
        check_optimizer(dataclasses.replace(STAGE, optimizer="adamw-8bit"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"pass --model.finetune_lr_scheduler_type constant"):
        check_optimizer(dataclasses.replace(STAGE, optimizer="schedule-free"))


def _train(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], steps: int) -> None:
    for step in range(steps):
        for number, weight in enumerate(weights):
            random = torch.Generator().manual_seed(100 * step + number)
            weight.grad = torch.randn(weight.shape, generator=random)
        optimizer.step()


def test_muon_is_torchs_over_matrices_and_adamw_over_the_rest() -> None:
    vlm, twin = FakeVLM(), FakeVLM()
    for model in (vlm, twin):
        model.freeze("finetune")
    stage = dataclasses.replace(STAGE, optimizer="muon", learning_rate=0.01)
    ours = build_optimizer(vlm, stage)
    mine = {n for n, p in vlm.named_parameters() if "momentum_buffer" in ours.state[p]}
    assert not mine
    matrices = [p for n, p in twin.named_parameters() if p.requires_grad and p.ndim == 2 and "embed" not in n]
    others = [p for n, p in twin.named_parameters() if p.requires_grad and (p.ndim == 1 or "embed" in n)]
    theirs = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1}]
    groups += [{"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0}]
    rest = torch.optim.AdamW(groups, lr=0.01, fused=True)
    # The same gradients by the order of named_parameters, whatever the groups.
    _train(ours, [p for p in vlm.parameters() if p.requires_grad], 3)
    weights = [p for p in twin.parameters() if p.requires_grad]
    for step in range(3):
        for number, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * step + number))
        theirs.step()
        rest.step()
    for (name, a), b in zip(vlm.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    assert {n for n, p in vlm.named_parameters() if "momentum_buffer" in ours.state[p]} == {
        *("projector.weight", "llm_backbone.layers.0.0.weight", "llm_backbone.layers.1.0.weight")
    }


def test_half_moments_follow_those_in_full() -> None:
    torch.manual_seed(0)
    start = torch.randn(64, 32)
    half, full = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours = OPTIMIZERS.get("adamw-bf16").build(FakeVLM(), [{"params": [half], "lr": 0.01, "weight_decay": 0.1}])
    theirs = torch.optim.AdamW([full], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    _train(ours, [half], 50)
    _train(theirs, [full], 50)
    assert {s.dtype for n, s in ours.state[half].items() if n != "step"} == {torch.bfloat16}
    # 8 significant bits in each moment: the way that was gone is the same to a percent.
    assert float((half - full).detach().norm() / (full - start).detach().norm()) < 0.01
    ours.load_state_dict(ours.state_dict())
    assert ours.state[half]["exp_avg_sq"].dtype == torch.bfloat16


def test_muon_does_not_step_in_the_hosts_memory() -> None:
    with pytest.raises(ValueError, match=r"optimizer muon .* leave out --model.cpu_offload true"):
        check_optimizer(dataclasses.replace(STAGE, optimizer="muon"), cpu_offload=True)
