"""Random numbers as a function of where a run stands, so that a continued run draws the same ones."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and PyTorch (CPU and CUDA) for one optimizer step of one process."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
