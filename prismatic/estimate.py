"""What a training step takes, from sizes alone: FLOPs and memory by the usual formulas. Estimates, not measurements."""

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

    def activation_bytes(self, tokens: float, bytes_per_number: int) -> float:
        """Bytes of what the backward pass needs, for `tokens` tokens in memory at a time.

        34 bytes per token, layer and unit of width at 2 bytes a number, attention scores not counted, since fused
        attention keeps none; recomputed layers keep their input, 2 bytes, and one layer at a time is whole
        (arXiv:2205.05198, equation 1 and section 5). Without gradients one layer is in memory.
        """
        unit = tokens * self.width * bytes_per_number / 2
        layers = max(self.layers, 1)
        if self.gradient == "none":
            return 34 * unit
        if self.recomputed:
            return unit * (2 * layers + 34)
        return unit * 34 * layers


@dataclass(frozen=True)
class Load:
    """What one optimizer step works on, over all processes.

    frames: of F frames, visual: tokens after the projector, text: text tokens, labels: learned tokens; all means of one
    example. patches: P of a frame. examples: per step. at_a_time: examples of one forward pass of one process.
    """

    frames: float
    patches: int
    visual: float
    text: float
    labels: float
    examples: int
    at_a_time: int

    @property
    def length(self) -> float:
        """Positions of an example in the LLM."""
        return self.visual + self.text


@dataclass(frozen=True)
class Estimate:
    """flops: of a step, all processes. memory: bytes on each process, by what they hold."""

    flops: float
    memory: dict[str, float]


def estimate(
    vision: Part, projector: Part, llm: Part, load: Load, *, vocabulary: int, shards: int, half: bool
) -> Estimate:
    """FLOPs and memory of a step. vocabulary: rows of the head. shards: processes that share one copy of the weights.

    half: bf16 compute over fp32 weights (a GPU), else fp32 throughout. A trained weight takes 16 bytes: itself, its
    gradient and two moments of AdamW in fp32 (as arXiv:1910.02054, section 3.1, counts them); a frozen one 2 or 4. Two
    layers are gathered whole at a time. The head works on label positions only: 2 D FLOPs for each row of the
    vocabulary, three times where the LLM has gradients.
    """
    number = 2 if half else 4
    parts = (vision, projector, llm)
    patches = load.frames * load.patches
    head_passes = {"none": 1, "through": 2, "trained": 3}[llm.gradient]
    flops = load.examples * (
        vision.step_flops(patches, load.patches)
        + projector.step_flops(load.visual, 0)
        + llm.step_flops(load.length, load.length)
        + head_passes * 2 * llm.width * vocabulary * load.labels
    )
    trained = sum(part.trained for part in parts)
    frozen = sum(part.parameters - part.trained for part in parts)
    once = load.at_a_time
    memory = {
        "trained weights, gradients, AdamW": 16 * trained / shards,
        "frozen weights": number * frozen / shards,
        "gathered layers": 2 * number * llm.matmul / max(llm.layers, 1) if shards > 1 else 0.0,
        "activations": vision.activation_bytes(once * patches, number)
        + projector.activation_bytes(once * load.visual, number)
        + llm.activation_bytes(once * load.length, number),
        "logits of label tokens": once * load.labels * vocabulary * (8 + number),
    }
    return Estimate(flops, memory)
