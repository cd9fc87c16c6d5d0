"""A few real clips of moving-shapes, and a stand-in for a model that tells what it was shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from prismatic.data.moving_shapes_render import render
from prismatic.types import ImageSpec

NUM_VAL = 6


def render_clips(root: Path) -> Path:
    """The folder of a small moving-shapes dataset below `root`."""
    folder = root / "moving-shapes"
    render(folder, seed=3, num_train=2, num_val=NUM_VAL, num_workers=1)
    return folder


class Builder:
    """Keeps the question as it is."""

    def add_turn(self, role: str, message: str) -> None:
        self.text = f"{role}: {message}"

    def get_prompt(self) -> str:
        return self.text


class StandIn:
    """Answers with the number of frames of each clip it was shown; knows no words. One visual token a frame."""

    def __init__(self, num_frames: int = 4, likeliest: int = 0) -> None:
        self.num_frames = num_frames
        self.likeliest = likeliest
        self.resize_strategy = "resize-naive"
        self.vision_backbone = SimpleNamespace(image_spec=ImageSpec(16))
        self.device = torch.device("cpu")
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def eval(self) -> StandIn:
        return self

    def tokens_per_clip(self, T: int) -> int:
        return T

    def encode(self, frames: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        assert frames.dtype == torch.uint8
        assert frames.shape[1:] == (3, 16, 16)
        assert len(frames) == sum(frames_per_medium)
        return frames.float().mean(dim=(1, 2, 3))[:, None]

    def get_prompt_builder(self, system_prompt: str | None = None) -> Builder:
        return Builder()

    def generate_batch(self, clips: list[Any], prompts: list[str], **options: Any) -> list[str]:
        self.calls.append((prompts, options))
        return [f"frames {[len(clip.tokens) for clip in row]}" for row in clips]

    def score_choices(self, clip: Any, prompt: str, choices: list[str]) -> list[float]:
        assert [len(c.tokens) for c in clip] == [self.num_frames]
        return [0.9 if i == self.likeliest else 0.1 / (len(choices) - 1) for i in range(len(choices))]
