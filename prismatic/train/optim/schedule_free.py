"""Schedule-free AdamW (arXiv:2405.15682) by the package `schedulefree`: averaging instead of a decay of the rate.

It trains at a point between the fast weights and their average; the average is the result. Measuring and saving
happen inside `averages()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer, in training mode. Imports `schedulefree`."""
    from schedulefree import AdamWScheduleFree

    class Averaging(AdamWScheduleFree):
        """AdamWScheduleFree whose switch to the averages is taken back exactly, and that resumes at any step."""

        @contextmanager
        @torch.no_grad()
        def averages(self) -> Iterator[None]:
            """Inside, the weights are the averages. The package's own way back rounds: here a copy is put back."""
            if not self.state:  # No step was done: all are the same
                yield
                return
            pairs = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
            self.eval()
            try:
                yield
            finally:
                with torch.no_grad():
                    for parameter, kept in pairs:
                        parameter.copy_(kept)
                self._training()

        def replay(self, factor: Callable[[int], float], done: int) -> None:
            """Set what depends on the rates of `done` steps: the weight of the next one in the average."""
            for group in self.param_groups:
                group["k"], group["lr_max"], group["weight_sum"] = done, -1.0, 0.0
                for step in range(done):
                    group["lr_max"] = max(group["initial_lr"] * factor(step), group["lr_max"])
                    group["weight_sum"] += group["lr_max"] ** group["weight_lr_power"]
            self._training()

        def _training(self) -> None:
            # Not train(): it makes an empty state for each weight, which readers of checkpoints take for a whole one.
            for group in self.param_groups:
                group["train_mode"] = True

    optimizer = Averaging(groups)
    optimizer._training()
    return optimizer
