"""Which weights are trained, and how fast: groups of parameters by name.

Patterns are globs over the names of parameters as they stand in checkpoints (`projector.projector.0.weight`): `*` also
matches dots, `?` one character, `[0-3]` one of several. The first pattern that matches a name decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

DEFAULT_GROUP = "default"
"""Name of the group of all weights that no pattern of --model.learning_rates matches."""

# What wrappers put into names: activation checkpointing, torch.compile.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def clean_name(name: str) -> str:
    """The name that a parameter had before its layer was wrapped."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def freeze_matching(vlm: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze what `--model.freeze` names, after the stage has said what is trained.

    Raises ValueError for a pattern that matches nothing, or nothing that would be trained.
    """
    for pattern in patterns:
        for parameter in _matching(vlm, pattern, "--model.freeze"):
            parameter.requires_grad_(False)


def check_patterns(vlm: nn.Module, rates: Mapping[str, float]) -> None:
    """Raises ValueError when a pattern of `--model.learning_rates` matches no weight that is trained."""
    for pattern in rates:
        _matching(vlm, pattern, "--model.learning_rates")


def parameter_groups(
    vlm: nn.Module, learning_rate: float, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer: of each learning rate the decayed weights, then biases and norms, which are not.

    Each has a "name": the pattern that gave it its rate, or "default". Groups without weights are left out.
    """
    rates = rates or {}
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in vlm.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias")
            found.setdefault((_group_of(clean_name(name), rates), decayed), []).append(parameter)
    return [
        {
            "params": found[name, decayed],
            "lr": rates.get(name, learning_rate),
            "weight_decay": weight_decay if decayed else 0.0,
            "name": name,
        }
        for name in (DEFAULT_GROUP, *rates)
        for decayed in (True, False)
        if (name, decayed) in found
    ]


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The present learning rate of each group by its name: "default", and the patterns of --model.learning_rates."""
    return {group.get("name", DEFAULT_GROUP): float(group["lr"]) for group in optimizer.param_groups}


def _group_of(name: str, patterns: Iterable[str]) -> str:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), DEFAULT_GROUP)


def _matching(vlm: nn.Module, pattern: str, flag: str) -> list[nn.Parameter]:
    named = {clean_name(name): parameter for name, parameter in vlm.named_parameters()}
    matched = {name: parameter for name, parameter in named.items() if fnmatchcase(name, pattern)}
    if not matched:
        raise ValueError(f"{flag}: no weight of this model matches '{pattern}'; {_near(pattern, list(named))}")
    trained = [parameter for parameter in matched.values() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            f"{flag}: '{pattern}' matches {len(matched)} weights, for example {next(iter(matched))}, and none of them "
            "is trained (by --stage, or since a pattern before it froze them); leave it out"
        )
    return trained


def _near(pattern: str, names: Sequence[str]) -> str:
    """Names like the pattern, as a hint: those that hold what is nearest to its longest part, or one of each module."""
    parts = sorted((part.strip(".") for part in pattern.replace("?", "*").split("*")), key=len, reverse=True)
    longest = parts[0] if parts else ""
    words = {word for name in names for word in (name, *name.split("."))}
    near = difflib.get_close_matches(longest, sorted(words), n=3, cutoff=0.6)
    examples = [name for word in near for name in names if word in (name, *name.split("."))][:3]
    examples = examples or list({name.partition(".")[0]: name for name in reversed(names)}.values())[::-1]
    hint = f"did you mean {' or '.join(repr(word) for word in near)}? Weights" if near else "weights"
    return f"{hint} are named like {', '.join(examples)}; in a pattern * stands for anything"
