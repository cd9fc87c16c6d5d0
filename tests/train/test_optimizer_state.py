"""State of an optimizer that nobody has heard of: tensors, plain numbers, and what it keeps in its groups."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from prismatic.train import checkpoint, folder, optimizer_state
from prismatic.train.errors import CheckpointError
from prismatic.train.trainer import Trainer

Make = Callable[..., Trainer]


class Strange(torch.optim.Optimizer):
    """Momentum in bf16, a plain counter for each weight, a running number for each group."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "beta": 0.9, "weight_sum": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["weight_sum"] += group["lr"]
            group["seen"] = group.get("seen", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(count=0, momentum=torch.zeros_like(parameter, dtype=torch.bfloat16))
                state["count"] += 1
                state["momentum"].mul_(group["beta"]).add_(parameter.grad)
                step = group["lr"] * (1 + group["weight_sum"] / group["seen"]) / state["count"]
                parameter.sub_(step * state["momentum"].float())


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(vlm: torch.nn.Module, stage: Any, *_: Any) -> Strange:
        parameters = [p for p in vlm.parameters() if p.requires_grad]
        return Strange([{"params": parameters[:3]}, {"params": parameters[3:]}], stage.learning_rate)

    monkeypatch.setattr("prismatic.train.optim.build_optimizer", build)


@pytest.mark.usefixtures("strange")
def test_a_strange_optimizer_resumes_bit_for_bit(trainer: Make) -> None:
    whole = trainer(run_id="whole", stage="full-finetune")
    assert whole.fit() is None
    for stop in (3, 6):  # Also a resume of a resume
        part = trainer(stage="full-finetune")
        part.train_loader.events = {stop: [15]}
        assert part.fit() is signal.SIGTERM
    state = folder.read_state(folder.newest(part.run_dir))["optimizer"]
    assert [sorted(values) for values in state["groups"]] == [["seen", "weight_sum"]] * 2
    assert {values["count"] for values in state["numbers"].values()} == {6}
    last = trainer(stage="full-finetune", model_seed=4)
    assert last.fit() is None
    assert last.losses == whole.losses
    assert last.optimizer.param_groups[1]["weight_sum"] == whole.optimizer.param_groups[1]["weight_sum"]
    state = next(iter(last.optimizer.state.values()))
    assert state["momentum"].dtype == torch.bfloat16 and state["count"] == 8


@pytest.mark.usefixtures("strange")
def test_what_cannot_be_held_is_said(trainer: Make) -> None:
    run = trainer(checkpoint_interval=1)
    run.optimizer.register_step_post_hook(lambda o, *_: next(iter(o.state.values())).update(odd=[torch.ones(1)]))
    with pytest.raises(CheckpointError, match="the optimizer keeps a list under 'odd', which a checkpoint cannot hold"):
        run.fit()


def test_another_number_of_groups_does_not_fit(trainer: Make) -> None:
    run = trainer(stage="full-finetune")
    run.fit()
    target = folder.newest(run.run_dir)
    state = folder.read_state(target)
    folder.write_state(target, {**state, "optimizer": {"numbers": {}, "groups": [{}]}})
    with pytest.raises(CheckpointError, match="its optimizer has 1 groups of parameters, this one 2"):
        checkpoint.restore(target, run.vlm, run.optimizer)


def test_making_the_state_changes_neither_groups_nor_gradients(trainer: Make) -> None:
    run = trainer()
    before = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    optimizer_state.initialise(run.optimizer)
    assert [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups] == before
    assert len(run.optimizer.state) == len(run.stepper._trained())
    assert all(p.grad is None for p in run.vlm.parameters())
