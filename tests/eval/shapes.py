"""A few real clips of moving-shapes, and a stand-in for a model that tells what it was shown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from prismatic.data.moving_shapes_render import render
from prismatic.models.media import EncodedClip
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
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def eval(self) -> StandIn:
        return self

    def encode_frames(self, clips: list[torch.Tensor]) -> list[EncodedClip]:
        assert all(clip.dtype == torch.uint8 and clip.shape[1:] == (3, 16, 16) for clip in clips)
        return [EncodedClip(clip.float().mean(dim=(1, 2, 3))[:, None]) for clip in clips]

    def get_prompt_builder(self, system_prompt: str | None = None) -> Builder:
        return Builder()

    def generate_batch(self, clips: list[Any], prompts: list[str], **options: Any) -> list[str]:
        self.calls.append((prompts, options))
        return [f"frames {[len(clip.tokens) for clip in row]}" for row in clips]

    def score_choices_batch(self, clips: list[Any], prompts: list[str], choices: list[list[str]]) -> list[list[float]]:
        assert all([len(c.tokens) for c in row] == [self.num_frames] for row in clips)
        return [[0.9 if i == self.likeliest else 0.1 / (len(own) - 1) for i in range(len(own))] for own in choices]
