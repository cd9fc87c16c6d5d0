"""Muon for hidden matrices, AdamW for everything else, as one optimizer over sharded weights.

PyTorch's torch.optim.Muon does the orthogonalization. A sharded gradient is gathered for it, so that the step is that
of one process; the momentum stays sharded. Every process does the arithmetic of every matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

MOMENTUM = 0.95  # As torch.optim.Muon
_KIND = "muon"


def hidden_matrices(vlm: nn.Module) -> set[nn.Parameter]:
    """The weights that Muon is for: matrices, but no embedding tables and nothing of a table's shape (the head)."""
    tables = [module.weight for module in vlm.modules() if isinstance(module, nn.Embedding)]
    shapes = {tuple(table.shape) for table in tables}
    found = [p for p in vlm.parameters() if p.ndim == 2 and tuple(p.shape) not in shapes]
    return set(found) - set(tables)


class MuonAdamW(torch.optim.Optimizer):
    """Muon over the parameters in `matrices`, fused AdamW over the others of `groups`.

    Rates are AdamW's: Muon's updates are scaled to the size of AdamW's (0.2 sqrt(max(rows, columns)) of
    arXiv:2502.16982), so that one learning rate serves both.
    """

    def __init__(self, groups: list[dict[str, Any]], matrices: set[nn.Parameter]) -> None:
        own = [{**g, "params": [p for p in g["params"] if p in matrices], "kind": _KIND} for g in groups]
        others = [{**g, "params": [p for p in g["params"] if p not in matrices], "kind": "adamw"} for g in groups]
        own, others = [g for g in own if g["params"]], [g for g in others if g["params"]]
        self._adamw = torch.optim.AdamW(others, fused=True) if others else None
        # With the options of AdamW in its groups: Optimizer wants each group complete.
        super().__init__([*own, *(self._adamw.param_groups if self._adamw else [])], {"lr": 0.0})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After loading, groups and state are new objects, which both optimizers must see."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step. closure is None: gradients are there."""
        assert closure is None
        for group in self.param_groups:
            if group["kind"] == _KIND:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._orthogonal_step(parameter, group)
        if self._adamw is not None:
            self._adamw.step()

    def _orthogonal_step(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        nesterov = parameter.grad.lerp(momentum, MOMENTUM)
        whole = nesterov.full_tensor() if isinstance(nesterov, DTensor) else nesterov
        # Momentum and decay are done on the shards: what is left to PyTorch's Muon is the direction.
        direction = nn.Parameter(torch.zeros_like(whole))
        direction.grad = whole
        options = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        torch.optim.Muon([direction], lr=float(group["lr"]), **options).step()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(_like(parameter, direction.detach()))

    def _share(self) -> None:
        if getattr(self, "_adamw", None) is not None:
            self._adamw.state = self.state
            self._adamw.param_groups = [g for g in self.param_groups if g["kind"] != _KIND]


def _like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor, equal on every process, sharded as `parameter` is; nothing travels."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=parameter.placements)
