"""What a training step computes, from sizes alone: FLOPs by the usual formulas. Memory is train/memory's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gradient = Literal["none", "through", "trained"]


@dataclass(frozen=True)
class Part:
    """One transformer or MLP of the model, as far as its cost goes.

    parameters: all its weights. matmul: those that every token is multiplied with (no embedding table, no head).
    layers, width: of its attention; 0 layers for an MLP. gradient: "trained", "through" (frozen, but gradients pass on
    to what stands before it) or "none". recomputed: activation checkpointing.
    """

    parameters: int
    trained: int
    matmul: int
    layers: int
    width: int
    gradient: Gradient
    recomputed: bool = False

    def step_flops(self, tokens: float, length: float) -> float:
        """FLOPs of one optimizer step over `tokens` tokens in sequences of `length`.

        A token costs 2 matmul + 4 layers width length forward: a third of the 6 N + 12 L H Q T of training (PaLM,
        arXiv:2204.02311, appendix B). Backward costs the same again for gradients that pass through, and once more for
        gradients of weights; recomputing adds another forward pass.
        """
        forward = tokens * (2 * self.matmul + 4 * self.layers * self.width * length)
        passes = {"none": 1, "through": 2, "trained": 3}[self.gradient]
        return forward * (passes + (self.recomputed and self.gradient != "none"))


@dataclass(frozen=True)
class Load:
    """What one optimizer step works on, over all processes.

    frames: of F frames, visual: tokens after the projector, text: text tokens, labels: learned tokens; all means of one
    example. patches: P of a frame. examples: per step.
    """

    frames: float
    patches: int
    visual: float
    text: float
    labels: float
    examples: int

    @property
    def length(self) -> float:
        """Positions of an example in the LLM."""
        return self.visual + self.text


def step_flops(vision: Part, projector: Part, llm: Part, load: Load, *, vocabulary: int) -> float:
    """FLOPs of a step, over all processes. vocabulary: rows of the head.

    The head works on label positions only: 2 D FLOPs for each row of the vocabulary, three times where the LLM has
    gradients of its weights.
    """
    head_passes = {"none": 1, "through": 2, "trained": 3}[llm.gradient]
    return load.examples * (
        vision.step_flops(load.frames * load.patches, load.patches)
        + projector.step_flops(load.visual, 0)
        + llm.step_flops(load.length, load.length)
        + head_passes * 2 * llm.width * vocabulary * load.labels
    )
