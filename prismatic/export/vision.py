"""Vision backbones as Transformers' modules: timm ViTs of CLIP's and SigLIP's layout, and FastViT-HD.

A ViT's layout is read off the modules that it is made of, not off its name, so what differs from the two layouts in
any part is refused, and what has their layout under another name works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prismatic.export.errors import ExportError
from prismatic.models.vision.fastvit_hd import STRIDE, FastViTHD
from prismatic.models.vision.timm_vit import TimmViT

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# From the kinds of timm's activation modules (by class and argument) to Transformers' names.
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "none": "gelu", "tanh": "gelu_pytorch_tanh", "GELUTanh": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class VisionTower:
    """A vision backbone in Transformers' terms.

    kind: "clip", "siglip" or "fastvit". patch_size: pixels. extra_tokens: features besides the patches (CLIP's class
    token). feature_layer: index into Transformers' hidden states, where -1 is the last layer's output.
    """

    kind: str
    config: PretrainedConfig
    patch_size: int
    extra_tokens: int
    feature_layer: int


def convert_vision(backbone: nn.Module) -> VisionTower:
    """The same backbone for Transformers. Raises ExportError with the reason where there is no such class."""
    if isinstance(backbone, FastViTHD):
        return _fastvit(backbone)
    if not isinstance(backbone, TimmViT):
        raise ExportError(
            f"Transformers' LLaVA takes one CLIP or SigLIP tower; {type(backbone).__name__} (a fused pair, or a "
            "backbone of your own) has no place in it"
        )
    vit = backbone.featurizer
    problem = _foreign_part(vit)
    if problem:
        raise ExportError(
            f"the vision backbone has neither CLIP's nor SigLIP's layout ({problem}), and Transformers' LLaVA is "
            "exported with these two only"
        )
    return _vit(backbone, vit)


def vision_state(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a backbone that can be converted, under Transformers' names; shared where no layer is split."""
    state = backbone.featurizer.state_dict()
    if isinstance(backbone, FastViTHD):
        return {f"timm_model.{key}": value for key, value in state.items()}
    return _vit_state(state, len(backbone.featurizer.blocks), clip=backbone.featurizer.has_class_token)


def _foreign_part(vit: nn.Module) -> str | None:
    from timm.models.vision_transformer import VisionTransformer

    if type(vit) is not VisionTransformer:
        return f"it is timm's {type(vit).__name__}"
    if vit.num_reg_tokens:
        return "register tokens, as DINOv2 has them"
    pre_norm, bias = isinstance(vit.norm_pre, nn.LayerNorm), vit.patch_embed.proj.bias is not None
    if not (vit.has_class_token == pre_norm == (not bias)):
        return "a class token without a norm in front of the blocks, or the other way round"
    if vit.no_embed_class or vit.patch_embed.proj.stride != vit.patch_embed.proj.kernel_size:
        return "another embedding of positions or patches"
    if vit.patch_embed.proj.kernel_size[0] != vit.patch_embed.proj.kernel_size[1]:
        return "patches that are not square"
    for block in vit.blocks:
        plain = (block.ls1, block.ls2, block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm)
        if type(block).__name__ != "Block" or not all(isinstance(part, nn.Identity) for part in plain):
            return "blocks with layer scale or further norms"
        if block.attn.qkv.bias is None or type(block.mlp).__name__ != "Mlp":
            return "attention without bias, or a gated MLP"
    return None


def _vit(backbone: TimmViT, vit: nn.Module) -> VisionTower:
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    clip, depth, block = vit.has_class_token, len(vit.blocks), vit.blocks[0]
    shape: dict[str, Any] = {
        "hidden_size": vit.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": depth,
        "num_attention_heads": block.attn.num_heads,
        "image_size": backbone.image_spec.resolution,
        "patch_size": vit.patch_embed.proj.kernel_size[0],
        "hidden_act": _activation(block.mlp.act),
        "layer_norm_eps": block.norm1.eps,
    }
    # The pooling head of SigLIP is never computed here.
    config = CLIPVisionConfig(**shape) if clip else SiglipVisionConfig(**shape, vision_use_head=False)
    return VisionTower(
        "clip" if clip else "siglip",
        config,
        patch_size=shape["patch_size"],
        extra_tokens=1 if clip else 0,
        feature_layer=backbone.block_index - depth,
    )


def _activation(module: nn.Module) -> str:
    found = _ACTIVATIONS.get(type(module).__name__) or _ACTIVATIONS.get(getattr(module, "approximate", ""))
    if found is None:
        raise ExportError(f"the vision backbone's activation {type(module).__name__} is unknown to the exporter")
    return found


def _vit_state(timm: Mapping[str, torch.Tensor], depth: int, clip: bool) -> dict[str, torch.Tensor]:
    state = {
        "embeddings.patch_embedding.weight": timm["patch_embed.proj.weight"],
        "embeddings.position_embedding.weight": timm["pos_embed"][0],
    }
    norms = {"norm": "post_layernorm"}
    if clip:
        state["embeddings.class_embedding"] = timm["cls_token"][0, 0]
        norms["norm_pre"] = "pre_layrnorm"  # so spelt there
    else:
        state["embeddings.patch_embedding.bias"] = timm["patch_embed.proj.bias"]
    parts = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    parts |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for end in ("weight", "bias"):
        state |= {f"{theirs}.{end}": timm[f"{ours}.{end}"] for ours, theirs in norms.items()}
        for i in range(depth):
            block, layer = f"blocks.{i}.", f"encoder.layers.{i}."
            state |= {f"{layer}{theirs}.{end}": timm[f"{block}{ours}.{end}"] for ours, theirs in parts.items()}
            for name, piece in zip("qkv", timm[f"{block}attn.qkv.{end}"].chunk(3), strict=True):
                state[f"{layer}self_attn.{name}_proj.{end}"] = piece.contiguous()
    return state


def _fastvit(backbone: FastViTHD) -> VisionTower:
    from transformers import TimmWrapperConfig

    config = TimmWrapperConfig(
        architecture="fastvit_mci3",
        do_pooling=True,
        global_pool="avg",
        hidden_size=backbone.embed_dim,
        num_features=backbone.embed_dim,
        model_args={"inference_mode": True},
    )
    return VisionTower("fastvit", config, patch_size=STRIDE, extra_tokens=0, feature_layer=-1)
