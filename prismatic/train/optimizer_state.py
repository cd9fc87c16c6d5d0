"""What an optimizer remembers, taken apart and put back, whichever optimizer it is.

Tensors go into the checkpoint's shards under the names of their parameters; plain numbers (a step counter, what some
optimizers keep in their parameter groups) go into `state.json`. Nothing here knows any optimizer's own names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from prismatic.train.errors import CheckpointError

Tensors = dict[str, dict[str, torch.Tensor]]
_BY_SCHEDULE = {"params", "lr", "initial_lr"}  # Of a group: not state, or a function of the step
_PLAIN = (bool, int, float, str, type(None))


def parameter_names(vlm: nn.Module) -> dict[int, str]:
    """The name in `vlm.state_dict()` of each parameter, by the id of the parameter; of tied ones the first name."""
    names: dict[int, str] = {}
    for name, value in vlm.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter):
            names.setdefault(id(value), name)
    return names


def tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Tensors:
    """{parameter: {name of the optimizer: tensor}}; the tensors are the optimizer's own, not copies."""
    found: Tensors = {}
    for parameter, state in optimizer.state.items():
        own = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        if own:
            found[names[id(parameter)]] = own
    return found


def numbers(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """{parameter: {name: plain value}} of what is no tensor. Raises CheckpointError for what JSON cannot hold."""
    found: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        own = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
        for key, value in own.items():
            if not isinstance(value, _PLAIN):
                kind = type(value).__name__
                raise CheckpointError(f"the optimizer keeps a {kind} under '{key}', which a checkpoint cannot hold")
        if own:
            found[names[id(parameter)]] = own
    return found


def group_values(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The plain values of each parameter group, without those that the schedule sets."""
    return [
        {key: value for key, value in group.items() if key not in _BY_SCHEDULE and isinstance(value, _PLAIN)}
        for group in optimizer.param_groups
    ]


def moved(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each group, the values that stepping has changed since `before`, when the optimizer was made."""
    return [
        {key: value for key, value in new.items() if key not in old or old[key] != value}
        for old, new in zip(before, now, strict=True)
    ]


def initialise(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer that never stepped make its state, so that there is something to load into.

    By a step on zero gradients at rate 0, as torch's own tools do. Parameters may change where an optimizer moves them
    regardless of both: load them afterwards.
    """
    if optimizer.state:
        return
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        for key in group.keys() - values.keys() - {"params"}:
            del group[key]
        group.update(values)


def forget(optimizer: torch.optim.Optimizer, names: Mapping[int, str], saved: Collection[str]) -> None:
    """After `initialise`: drop the state of parameters that had none when it was saved (no gradient came to them)."""
    for parameter in list(optimizer.state):
        if names[id(parameter)] not in saved:
            del optimizer.state[parameter]


def put_back(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], state: Mapping[str, Any], groups: list[dict[str, Any]]
) -> None:
    """Set the plain values that `numbers` and `moved` gave. Raises CheckpointError for another number of groups."""
    if groups and len(groups) != len(optimizer.param_groups):
        there, here = len(groups), len(optimizer.param_groups)
        raise CheckpointError(f"its optimizer has {there} groups of parameters, this one {here}")
    for parameter, own in optimizer.state.items():
        own.update(state.get(names[id(parameter)], {}))
    for group, values in zip(optimizer.param_groups, groups, strict=False):
        group.update(values)
