"""AdamW with moments in bf16: 4 bytes a weight less of state than with fp32 moments.

PyTorch's own fused kernel does the arithmetic where it takes such moments (CUDA); elsewhere they are widened for one
weight at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.adamw import adamw

BETAS = (0.9, 0.95)
"""Not 0.999: a bf16 number has 8 significant bits, so a second moment that shrinks by a thousandth is rounded back to
what it was, and would never fall again."""


class HalfStateAdamW(torch.optim.AdamW):
    """AdamW over fp32 weights and gradients with bf16 moments."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, betas=BETAS, fused=True)
        self._native: bool | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step. closure is None: gradients are there."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter] if parameter.grad is not None else None
                if state is not None and not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        if self._native is None:
            self._native = _kernel_takes_half(self.param_groups[0]["params"][0].device)
        if self._native:
            super().step()
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._widened(parameter, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer; PyTorch widens what it loads to the weights' dtype, so the moments are halved again."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(torch.bfloat16)

    def _widened(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        mean, square = state["exp_avg"].float(), state["exp_avg_sq"].float()
        adamw(
            *([parameter], [parameter.grad], [mean], [square], [], [state["step"]]),
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            **{name: group[name] for name in ("lr", "weight_decay", "eps")},
        )
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)


def _kernel_takes_half(device: torch.device) -> bool:
    """Whether the fused kernel of this device and version takes bf16 moments beside fp32 weights."""
    weight = torch.nn.Parameter(torch.ones(1, device=device))
    weight.grad = torch.ones_like(weight)
    probe = torch.optim.AdamW([weight], lr=0.5, fused=True)
    halves = {name: torch.zeros(1, dtype=torch.bfloat16, device=device) for name in ("exp_avg", "exp_avg_sq")}
    probe.state[weight] = {"step": torch.zeros((), device=device), **halves}
    try:
        probe.step()
    except RuntimeError:
        return False
    # A kernel that reads the moments as another type fails here instead.
    return bool(torch.isfinite(weight).all()) and abs(float(halves["exp_avg"]) - 0.1) < 1e-3
