"""Sizes of backbones from their ids alone: built without memory for weights, nothing downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from prismatic.models.llm.zoo import LLMSpec, llm_spec
from prismatic.models.vision.zoo import build_vision, vision_spec


@dataclass(frozen=True)
class VisionFacts:
    """width: Dv. patches: P, features of a frame. resolution: side R in pixels. source: where its weights come from."""

    width: int
    patches: int
    resolution: int
    parameters: int
    source: str


@dataclass(frozen=True)
class LLMFacts:
    """width: D. context: most positions. source: hub repository. Sizes are None for an LLM whose row has no shape."""

    width: int | None
    layers: int | None
    context: int | None
    parameters: int | None
    source: str


@lru_cache(maxsize=256)
def vision_facts(vision_id: str) -> VisionFacts:
    """The sizes of a vision backbone. Raises ValueError for an unknown id."""
    with torch.device("meta"):
        vision: Any = build_vision(vision_id, pretrained=False)
    source = getattr(vision_spec(vision_id), "origin", "")
    return VisionFacts(
        vision.embed_dim, vision.num_patches, vision.image_spec.resolution, count_parameters(vision), source
    )


@lru_cache(maxsize=256)
def llm_facts(llm_id: str) -> LLMFacts:
    """The sizes of an LLM, vocabulary as published. Raises ValueError for an unknown id.

    Layers are alike, so models of one and two layers say how large one of all layers is.
    """
    spec = llm_spec(llm_id)
    source = spec.hf_path or "random weights only"
    if spec.model_type is None:
        return LLMFacts(None, None, None, None, source)
    from prismatic.models.llm.rope import context_length

    config = _config(spec)
    one, two = (_parameters(_config(spec, num_hidden_layers=n)) for n in (1, 2))
    layers = config.num_hidden_layers
    return LLMFacts(config.hidden_size, layers, context_length(config), one + (layers - 1) * (two - one), source)


def count_parameters(module: nn.Module) -> int:
    """Weights of a module; shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _config(spec: LLMSpec, **changes: Any) -> Any:
    from transformers import AutoConfig

    no_ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return AutoConfig.for_model(spec.model_type, **no_ids, **{**spec.shape, **changes})


def _parameters(config: Any) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return count_parameters(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
