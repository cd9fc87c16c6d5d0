"""What a family of native VLMs has to bring: a vision part, a projector part, and how its frames must look.

The official model is taken apart once, when it is built: its tower becomes `vision_backbone`, its projector (or merger)
`projector`, the rest `llm_backbone`. Each module keeps its official class and code; only who calls it changes, so that
stages, sharding and checkpoints work as for every other model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from prismatic.models.rotary import KeepsFrequencies
from prismatic.registry import Registry
from prismatic.types import ImageSpec

PLAIN_TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Vision towers with one grid of patches a frame -> how many tokens (CLS) stand in front of them."""


_TAKEN = "_prismatic_taken"


class NativeVision(KeepsFrequencies):
    """Base of the vision parts. image_spec: how frames must be prepared. A clip of one frame is an image.

    A subclass defines `num_tokens` and `forward`.
    """

    image_spec: ImageSpec

    def num_tokens(self, T: int) -> int:
        """N, visual tokens that the LLM gets of a clip of T frames."""
        raise NotImplementedError

    def forward(self, frames: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] of clips with T = counts to features, in whatever form the projector part takes."""
        raise NotImplementedError

    def used_parameters(self) -> list[nn.Parameter]:
        """The parameters that the features depend on; all of them where there are no weights to compute with.

        Found by a backward pass over black frames: the last layer and the pooling head of many towers are unused.
        """
        parameters = list(self.parameters())
        if any(p.is_meta for p in parameters):
            return parameters
        asked = [p.requires_grad for p in parameters]
        R = self.image_spec.resolution
        try:
            self.requires_grad_(True)
            with torch.enable_grad():
                features = self(torch.zeros(3, 3, R, R, dtype=torch.uint8, device=parameters[0].device), (1, 2))
                gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        finally:
            for parameter, before in zip(parameters, asked, strict=True):
                parameter.requires_grad_(before)
        return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


class Rope(NamedTuple):
    """Positions of a family that places visual tokens in time, height and width (M-RoPE).

    positions: (ids int64 [S] with VISUAL_SLOT, N of each clip in order) -> int64 [3, S], on the CPU. A named tuple and
    not a module: it may hold on to the official model without its weights being counted twice.
    """

    positions: Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


class NativeParts(NamedTuple):
    """An official model taken apart. rope: None where positions simply count."""

    vision: NativeVision
    projector: nn.Module
    rope: Rope | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What `NativeFamily.take` gets. image_size: R that the user asks for, None for the family's own choice."""

    model: Any
    processor: Any
    image_size: int | None

    @property
    def config(self) -> Any:
        """Configuration of the whole model."""
        return self.model.config


@dataclass(frozen=True)
class NativeFamily:
    """A row of NATIVE_FAMILIES; its id is the `model_type` of the checkpoint's config.json.

    model_class: class of Transformers. take: takes the tower and projector out of the model, in place. resize: id of
    the resize strategy closest to the official preprocessing. template: prompt template of checkpoints that carry no
    chat template. medium: what stands around visual tokens then. has_video: the processor has a video placeholder.
    """

    model_class: str
    take: Callable[[Checkpoint], NativeParts]
    resize: str
    template: str = "vicuna-v15"
    medium: str = "{slots}\n"
    has_video: bool = False


NATIVE_FAMILIES: Registry[NativeFamily] = Registry(
    "native VLM family", package="prismatic.models.native", flag="--model.model_path"
)


def fixed_size(checkpoint: Checkpoint, size: int) -> int:
    """R of a family whose tower takes one size only. Raises ValueError when the user asks for another."""
    if checkpoint.image_size not in (None, size):
        raise ValueError(
            f"--model.image_size {checkpoint.image_size}: this checkpoint's vision tower takes {size} pixels and "
            "nothing else; leave the flag out"
        )
    return size


def pixel_spec(processor: Any, R: int) -> ImageSpec:
    """How an image or video processor of Transformers normalises, at R pixels."""
    normalised = bool(getattr(processor, "do_normalize", True))
    mean = tuple(processor.image_mean) if normalised else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if normalised else (1.0, 1.0, 1.0)
    bilinear = int(getattr(processor, "resample", None) or 3) == 2  # Pillow's number; 3 is bicubic
    return ImageSpec(R, mean, std, interpolation="bilinear" if bilinear else "bicubic")


def take_module(owner: nn.Module, name: str) -> nn.Module:
    """Remove a child from a module and return it. `whole` puts it back."""
    child = owner._modules.pop(name)
    assert child is not None
    # In __dict__ it is no child: the weights are counted, moved and saved where the child lives now.
    owner.__dict__.setdefault(_TAKEN, []).append((owner._modules, name, child))
    return child


def take_parameter(owner: nn.Module, name: str) -> nn.Parameter:
    """Remove a parameter from a module and return it. `whole` puts it back."""
    parameter = owner._parameters.pop(name)
    assert parameter is not None
    owner.__dict__.setdefault(_TAKEN, []).append((owner._parameters, name, parameter))
    return parameter


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside, an official model has its parts again, to be saved in its official form (unsharded models only)."""
    undo: list[tuple[dict[str, Any], str, Any]] = []
    waiting = [model]
    while waiting:
        for owner in list(waiting.pop().modules()):
            for place, name, part in owner.__dict__.get(_TAKEN, []):
                undo.append((place, name, place.get(name)))
                place[name] = part
                waiting += [part] if isinstance(part, nn.Module) else []
    try:
        yield
    finally:
        for place, name, before in undo:
            if before is None:
                del place[name]
            else:
                place[name] = before


def hidden_states(tower: nn.Module, pixels: torch.Tensor, layer: int | Sequence[int], skip: int) -> torch.Tensor:
    """Features [F, P, Dv] of a tower's layer, or of several side by side, without the first `skip` tokens."""
    states = tower(pixels.to(next(tower.parameters()).dtype), output_hidden_states=True, return_dict=True).hidden_states
    chosen = [states[layer]] if isinstance(layer, int) else [states[i] for i in layer]
    return torch.cat([state[:, skip:] for state in chosen], dim=-1)


def plain_tower(config: Any) -> tuple[int, int]:
    """(side of the patch grid, tokens in front of it) of a CLIP or SigLIP tower. Raises ValueError for another."""
    vision = config.vision_config
    if vision.model_type not in PLAIN_TOWERS:
        raise ValueError(
            f"--model.model_path: the vision tower '{vision.model_type}' of this {config.model_type} checkpoint is not "
            f"supported; known are {', '.join(PLAIN_TOWERS)}"
        )
    return vision.image_size // vision.patch_size, PLAIN_TOWERS[vision.model_type]
