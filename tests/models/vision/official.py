"""Small models of the families' official Transformers classes, and their weights under the names of each publisher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]
SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}


def lively(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model in eval mode with weights of a size at which every part of it shows in the output."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.02 if parameter.ndim == 1 else 0.2
            parameter.add_(torch.randn(parameter.shape, generator=numbers) * spread)
            assert name
    return model.eval()


def _block(state: Weights, old: str, qkv: str = "self_attn") -> dict[str, torch.Tensor]:
    """One layer's attention weights with queries, keys and values in one matrix."""
    out = {}
    for kind in ("weight", "bias"):
        parts = [state.get(f"{old}{qkv}.{name}_proj.{kind}") for name in "qkv"]
        if parts[0] is not None:
            parts = [torch.zeros_like(parts[0]) if p is None else p for p in parts]
            out[kind] = torch.cat(parts)
    return out


def clip() -> tuple[torch.nn.Module, Weights, str, dict[str, Any]]:
    """OpenAI's names: `visual.transformer.resblocks.0.ln_1.weight`."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**SIZES, image_size=32, patch_size=8, hidden_act="quick_gelu")
    model = lively(CLIPVisionModel(config))
    state = {k.removeprefix("vision_model."): v for k, v in model.state_dict().items()}
    out = {
        "visual.class_embedding": state["embeddings.class_embedding"],
        "visual.conv1.weight": state["embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["embeddings.position_embedding.weight"],
        "visual.proj": torch.zeros(24, 16),
    }
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = state[f"pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = state[f"post_layernorm.{kind}"]
        for i in range(3):
            old, new = f"encoder.layers.{i}.", f"visual.transformer.resblocks.{i}."
            out[f"{new}attn.in_proj_{kind}"] = _block(state, old)[kind]
            for theirs, openai in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                out[f"{new}{openai}.{kind}"] = state[f"{old}{theirs}.{kind}"]
    return model, out, "vit_base_patch16_clip_quickgelu_224", {"num_classes": 16}


def siglip() -> tuple[torch.nn.Module, Weights, str, dict[str, Any]]:
    """timm's names, which its SigLIP repositories have. Its GELU is the exact one, as the older systems ran it."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = lively(SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=32, patch_size=8, hidden_act="gelu")))
    state = {k.removeprefix("vision_model."): v for k, v in model.state_dict().items()}
    q, kv = state["head.attention.in_proj_weight"].split([24, 48])
    q_bias, kv_bias = state["head.attention.in_proj_bias"].split([24, 48])
    out = {
        "patch_embed.proj.weight": state["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embedding.bias"],
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "attn_pool.latent": state["head.probe"],
        **{
            "attn_pool.q.weight": q,
            "attn_pool.q.bias": q_bias,
            "attn_pool.kv.weight": kv,
            "attn_pool.kv.bias": kv_bias,
        },
    }
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = state[f"post_layernorm.{kind}"]
        out[f"attn_pool.proj.{kind}"] = state[f"head.attention.out_proj.{kind}"]
        out[f"attn_pool.norm.{kind}"] = state[f"head.layernorm.{kind}"]
        for fc in ("fc1", "fc2"):
            out[f"attn_pool.mlp.{fc}.{kind}"] = state[f"head.mlp.{fc}.{kind}"]
        for i in range(3):
            old, new = f"encoder.layers.{i}.", f"blocks.{i}."
            out[f"{new}attn.qkv.{kind}"] = _block(state, old)[kind]
            for theirs, timms in (
                ("self_attn.out_proj", "attn.proj"),
                ("layer_norm1", "norm1"),
                ("layer_norm2", "norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                out[f"{new}{timms}.{kind}"] = state[f"{old}{theirs}.{kind}"]
    return model, out, "vit_base_patch16_siglip_224", {"num_classes": 0}


def dinov2() -> tuple[torch.nn.Module, Weights, str, dict[str, Any]]:
    """The names of the DINOv2 repository, registers included."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    config = Dinov2WithRegistersConfig(**sizes, mlp_ratio=4, image_size=32, patch_size=8, num_register_tokens=4)
    model = lively(Dinov2WithRegistersModel(config))
    state = model.state_dict()
    out = {
        "cls_token": state["embeddings.cls_token"],
        "register_tokens": state["embeddings.register_tokens"],
        "mask_token": state["embeddings.mask_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
    }
    for i in range(3):
        old, new = f"encoder.layer.{i}.", f"blocks.{i}."
        out[f"{new}ls1.gamma"] = state[f"{old}layer_scale1.lambda1"]
        out[f"{new}ls2.gamma"] = state[f"{old}layer_scale2.lambda1"]
        for kind in ("weight", "bias"):
            # Transformers has renamed these in the course of its version 5.
            names = (
                *(("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key")),
                *(("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense")),
            )
            *qkv, proj = [
                next(state[f"{old}{n}.{kind}"] for n in pair if f"{old}{n}.{kind}" in state) for pair in names
            ]
            out[f"{new}attn.qkv.{kind}"], out[f"{new}attn.proj.{kind}"] = torch.cat(qkv), proj
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{new}{name}.{kind}"] = state[f"{old}{name}.{kind}"]
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = state[f"layernorm.{kind}"]
    return model, out, "vit_small_patch14_reg4_dinov2", {"num_classes": 0, "init_values": 1.0}


def dinov3() -> tuple[torch.nn.Module, Weights, str, dict[str, Any]]:
    """The names of the DINOv3 repository; keys have no bias, and positions are rotations."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(**SIZES, image_size=32, patch_size=8, num_register_tokens=4)
    model = lively(DINOv3ViTModel(config))
    state = model.state_dict()
    out = {
        "cls_token": state["embeddings.cls_token"],
        "storage_tokens": state["embeddings.register_tokens"],
        "mask_token": state["embeddings.mask_token"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.bias"],
    }
    prefix = next(k for k in state if k.endswith("layer.0.norm1.weight")).removesuffix("0.norm1.weight")
    for i in range(3):
        old, new = f"{prefix}{i}.", f"blocks.{i}."
        out[f"{new}ls1.gamma"] = state[f"{old}layer_scale1.lambda1"]
        out[f"{new}ls2.gamma"] = state[f"{old}layer_scale2.lambda1"]
        out[f"{new}attn.qkv.weight"] = _block(state, old, "attention")["weight"]
        bias = [state.get(f"{old}attention.{name}_proj.bias") for name in "qkv"]
        out[f"{new}attn.qkv.bias"] = torch.cat([torch.zeros(24) if b is None else b for b in bias])
        for kind in ("weight", "bias"):
            for theirs, new_name in (
                ("attention.o_proj", "attn.proj"),
                ("norm1", "norm1"),
                ("norm2", "norm2"),
                ("mlp.up_proj", "mlp.fc1"),
                ("mlp.down_proj", "mlp.fc2"),
            ):
                out[f"{new}{new_name}.{kind}"] = state[f"{old}{theirs}.{kind}"]
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = state[f"norm.{kind}"]
    return model, out, "vit_small_patch16_dinov3_qkvb", {"num_classes": 0}


def write_timm_folder(folder: Path, state: Weights, architecture: str, options: dict[str, Any]) -> Path:
    """A folder as timm's repositories are: config.json and model.safetensors, for pictures of 32 x 32."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": architecture,
        "num_classes": options["num_classes"],
        "model_args": {
            **{"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 32},
            **{k: v for k, v in options.items() if k != "num_classes"},
        },
        "pretrained_cfg": {
            "tag": "official",
            "num_classes": options["num_classes"],
            "input_size": [3, 32, 32],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    return folder
