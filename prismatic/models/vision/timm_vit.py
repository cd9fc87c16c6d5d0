"""Any timm vision transformer as a backbone: patch features of the second-to-last block.

The last block, the final norm and the head are kept, so that state dicts match timm's (prefix `featurizer.`) and those
of older checkpoints, but they are never computed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prismatic.models.hub import cache_dir, explain
from prismatic.models.seeding import seeded
from prismatic.models.vision.base import normalise
from prismatic.types import ImageSpec

TIMM_PREFIX = "timm:"
TIMM_SOURCES = ("hf-hub:", "local-dir:")
"""What a timm name begins with when it names a repository or a folder in timm's format (config.json and weights)."""


class TimmViT(nn.Module):
    """A timm ViT (VisionTransformer, Eva, NaFlexVit): frames uint8 [F, 3, R, R] to features [F, P, Dv].

    featurizer: a timm model with `blocks` and `forward_intermediates`. image_spec: the pixels that it was built for.
    """

    def __init__(self, featurizer: nn.Module, image_spec: ImageSpec) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.image_spec = image_spec
        self.embed_dim: int = featurizer.embed_dim
        self.block_index = max(len(featurizer.blocks) - 2, 0)
        self.num_patches = _count_patches(featurizer, image_spec.resolution)
        self.eval()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Features [F, P, Dv] without CLS and register tokens and without the final norm, in the module's dtype."""
        dtype = next(self.featurizer.parameters()).dtype
        return self.featurizer.forward_intermediates(
            normalise(frames, self.image_spec).to(dtype),
            indices=[self.block_index],
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )[0]

    def used_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters up to the second-to-last block: the rest never gets a gradient."""
        unused = {id(p) for block in self.featurizer.blocks[self.block_index + 1 :] for p in block.parameters()}
        for name in ("norm", "fc_norm", "attn_pool", "head", "head_drop"):
            module = getattr(self.featurizer, name, None)
            if isinstance(module, nn.Module):
                unused |= {id(p) for p in module.parameters()}
        return [p for p in self.featurizer.parameters() if id(p) not in unused]

    def train(self, mode: bool = True) -> TimmViT:
        """Stays in eval mode: features must not depend on dropout or stochastic depth."""
        return super().train(False)


def _count_patches(model: nn.Module, resolution: int) -> int:
    embed = getattr(model, "patch_embed", None) or model.embeds
    height, width = embed.dynamic_feat_size((resolution, resolution))
    return int(height) * int(width)


@dataclass(frozen=True)
class ViTSpec:
    """A row of the zoo: a timm name, and what differs from timm's own configuration of it.

    timm_name: with its weights' tag wherever there are several (timm's default tag changes between releases).
    image_size: side R in pixels; None takes timm's. crop_pct: None takes timm's. kwargs: for the timm class.
    """

    timm_name: str
    image_size: int | None = None
    crop_pct: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def origin(self) -> str:
        """Where the weights come from, for tables."""
        return f"timm {self.timm_name}"

    def image_spec(self) -> ImageSpec:
        """How frames must be prepared, from timm's pretrained_cfg (of a repository: its config.json) and this row.

        Raises ValueError when there is no such model, or the repository cannot be read.
        """
        cfg = self._pretrained_cfg()
        return ImageSpec(
            resolution=self.image_size or cfg["input_size"][-1],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
            crop_pct=self.crop_pct if self.crop_pct is not None else cfg["crop_pct"],
        )

    def _pretrained_cfg(self) -> dict[str, Any]:
        from timm.data import resolve_data_config
        from timm.models import get_pretrained_cfg
        from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

        kind, _, place = self.timm_name.partition(":")
        if not place:
            cfg = get_pretrained_cfg(self.timm_name)
            if cfg is None:
                raise ValueError(f"timm has no model '{self.timm_name}'")
            return resolve_data_config(pretrained_cfg=cfg.to_dict())
        try:
            if kind == "local-dir":
                found = load_model_config_from_path(place)[0]
            else:
                found = load_model_config_from_hf(place, cache_dir=cache_dir())[0]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{self.timm_name}' is no model in timm's format: {explain(error, place)}") from error
        return resolve_data_config(pretrained_cfg=found)

    def build(self, *, pretrained: bool, seed: int) -> nn.Module:
        """The backbone. Raises ValueError when the timm model is not a ViT or its weights cannot be had."""
        spec = self.image_spec()
        with seeded(seed):
            model = self._create(spec.resolution, pretrained)
        if not hasattr(model, "blocks") or not hasattr(model, "forward_intermediates"):
            raise ValueError(_NOT_A_VIT.format(self.timm_name))
        if pretrained:
            model.reset_classifier(0)
        return TimmViT(model, spec)

    def _create(self, resolution: int, pretrained: bool) -> nn.Module:
        import timm
        from safetensors import SafetensorError

        # With a classifier of another size than the weights', timm takes any weights at all and makes up the rest: the
        # published classifier is loaded too, and dropped afterwards.
        kwargs: dict[str, Any] = dict(self.kwargs) if pretrained else {"num_classes": 0, **self.kwargs}
        if "naflexvit" not in self.timm_name:  # which takes any size and has no img_size
            kwargs["img_size"] = resolution
        try:
            return timm.create_model(self.timm_name, pretrained=pretrained, cache_dir=cache_dir(), **kwargs)
        except TypeError as error:
            raise ValueError(_NOT_A_VIT.format(self.timm_name)) from error
        except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
            if not pretrained:
                raise
            reason = explain(error, self._place()) if isinstance(error, OSError) else " ".join(str(error).split())[:400]
            raise ValueError(
                f"cannot get the weights of vision backbone '{self.timm_name}': {reason}; check the network, or build "
                "it with random weights: --model.pretrained_backbones false"
            ) from error

    def _place(self) -> str:
        """Where the weights are: a folder, or a repository of the hub."""
        from timm.models import get_pretrained_cfg

        place = self.timm_name.partition(":")[2]
        cfg = None if place else get_pretrained_cfg(self.timm_name)
        return place or (cfg.hf_hub_id if cfg and cfg.hf_hub_id else self.timm_name)


_NOT_A_VIT = (
    "timm model '{}' is not a vision transformer; --model.vision_backbone_id takes timm's ViT, Eva and NaFlexVit"
)


@dataclass(frozen=True)
class CustomViTSpec:
    """A row that is an architecture of its own: a timm VisionTransformer of any size, with random weights only."""

    image_size: int
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def origin(self) -> str:
        """Where the weights come from, for tables."""
        return "random weights only"

    def build(self, *, pretrained: bool, seed: int) -> nn.Module:
        """The backbone. pretrained: False; there are no weights of it anywhere, which build_vision says."""
        from timm.models.vision_transformer import VisionTransformer

        assert not pretrained
        with seeded(seed):
            model = VisionTransformer(img_size=self.image_size, num_classes=0, **self.kwargs)
        return TimmViT(model, ImageSpec(self.image_size, self.mean, self.std))
