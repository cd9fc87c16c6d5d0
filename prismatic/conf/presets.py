"""The named compositions behind `--model.type`: one row each, after the published Prismatic and VideoWeave presets.

A row is (id, vision backbone, LLM, architecture, resize strategy, fields that differ from ModelConfig). The rows with
Gemma and DINOv2+SigLIP or SigLIP, and the 13B SigLIP one, build what their ids say; the original sources did not.
"""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any, Literal  # noqa: F401  Literal: draccus resolves the types of fields that a row changes here

from prismatic.conf.models import NATIVE_MODEL_ID, ModelConfig

CLIP, SIGLIP, DINOSIGLIP = "clip-vit-l-336px", "siglip-vit-so400m-384px", "dinosiglip-vit-so-384px"
VICUNA, VICUNA_13B = "vicuna-v15-7b", "vicuna-v15-13b"
LLAMA2, LLAMA2_13B = "llama2-7b-pure", "llama2-13b-pure"
MLP, ONE_STAGE, FUSED = "gelu-mlp", "no-align+gelu-mlp", "no-align+fused-gelu-mlp"
TWO_EPOCHS: dict[str, Any] = {"finetune_epochs": 2}

PRESETS: list[tuple[str, str, str, str, str, dict[str, Any]]] = [
    ("reproduction-llava-v15+7b", CLIP, VICUNA, MLP, "letterbox", {}),
    ("reproduction-llava-v15+13b", CLIP, VICUNA_13B, MLP, "letterbox", {}),
    ("one-stage+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {}),
    ("one-stage+13b", CLIP, VICUNA_13B, ONE_STAGE, "letterbox", {}),
    ("full-ft-multi-stage+7b", CLIP, VICUNA, MLP, "letterbox", {}),
    ("full-ft-one-stage+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {}),
    ("in1k-224px+7b", "in1k-vit-l", VICUNA, ONE_STAGE, "letterbox", {}),
    ("dinov2-224px+7b", "dinov2-vit-l", VICUNA, ONE_STAGE, "letterbox", {}),
    ("clip-224px+7b", "clip-vit-l", VICUNA, ONE_STAGE, "letterbox", {}),
    ("siglip-224px+7b", "siglip-vit-so400m", VICUNA, ONE_STAGE, "letterbox", {}),
    ("clip-336px-resize-crop+7b", CLIP, VICUNA, ONE_STAGE, "resize-crop", {}),
    ("clip-336px-resize-naive+7b", CLIP, VICUNA, ONE_STAGE, "resize-naive", {}),
    ("siglip-384px-letterbox+7b", SIGLIP, VICUNA, ONE_STAGE, "letterbox", {}),
    ("siglip-384px-resize-crop+7b", SIGLIP, VICUNA, ONE_STAGE, "resize-crop", {}),
    ("siglip-384px-resize-naive+7b", SIGLIP, VICUNA, ONE_STAGE, "resize-naive", {}),
    ("dinoclip-336px-letterbox+7b", "dinoclip-vit-l-336px", VICUNA, FUSED, "letterbox", {}),
    ("dinoclip-336px-resize-naive+7b", "dinoclip-vit-l-336px", VICUNA, FUSED, "resize-naive", {}),
    ("dinosiglip-384px-letterbox+7b", DINOSIGLIP, VICUNA, FUSED, "letterbox", {}),
    ("dinosiglip-384px-resize-naive+7b", DINOSIGLIP, VICUNA, FUSED, "resize-naive", {}),
    ("llama2+7b", CLIP, LLAMA2, ONE_STAGE, "letterbox", {}),
    ("llama2+13b", CLIP, LLAMA2_13B, ONE_STAGE, "letterbox", {}),
    ("llama2-chat+7b", CLIP, "llama2-7b-chat", ONE_STAGE, "letterbox", {}),
    ("llama2-chat+13b", CLIP, "llama2-13b-chat", ONE_STAGE, "letterbox", {}),
    ("llama3-instruct+8b+clip", CLIP, "llama3-8b-instruct", ONE_STAGE, "letterbox", {}),
    ("llama3-instruct+8b+dinosiglip", DINOSIGLIP, "llama3-8b-instruct", ONE_STAGE, "letterbox", {}),
    ("llama3-instruct+8b+siglip", SIGLIP, "llama3-8b-instruct", ONE_STAGE, "letterbox", {}),
    ("gemma-instruct+2b+clip", CLIP, "gemma-2b-instruct", ONE_STAGE, "letterbox", {}),
    ("gemma-instruct+2b+dinosiglip", DINOSIGLIP, "gemma-2b-instruct", ONE_STAGE, "letterbox", {}),
    ("gemma-instruct+2b+siglip", SIGLIP, "gemma-2b-instruct", ONE_STAGE, "letterbox", {}),
    ("gemma-instruct+8b+clip", CLIP, "gemma-8b-instruct", ONE_STAGE, "letterbox", {}),
    ("gemma-instruct+8b+dinosiglip", DINOSIGLIP, "gemma-8b-instruct", ONE_STAGE, "letterbox", {}),
    ("gemma-instruct+8b+siglip", SIGLIP, "gemma-8b-instruct", ONE_STAGE, "letterbox", {}),
    ("mistral-v0.1+7b", CLIP, "mistral-v0.1-7b-pure", ONE_STAGE, "letterbox", {}),
    ("mistral-instruct-v0.1+7b", CLIP, "mistral-v0.1-7b-instruct", ONE_STAGE, "letterbox", {}),
    ("mistral-instruct-v0.2+7b+clip", CLIP, "mistral-v0.2-7b-instruct", ONE_STAGE, "letterbox", {}),
    ("mistral-instruct-v0.2+7b+dinosiglip", DINOSIGLIP, "mistral-v0.2-7b-instruct", ONE_STAGE, "letterbox", {}),
    ("mistral-instruct-v0.2+7b+siglip", SIGLIP, "mistral-v0.2-7b-instruct", ONE_STAGE, "letterbox", {}),
    ("phi-2+3b", CLIP, "phi-2-3b", ONE_STAGE, "letterbox", {}),
    ("phi-3-instruct+4b+clip", CLIP, "phi-3-instruct-4b", ONE_STAGE, "letterbox", {}),
    ("phi-3-instruct+4b+dinosiglip", DINOSIGLIP, "phi-3-instruct-4b", ONE_STAGE, "letterbox", {}),
    ("phi-3-instruct+4b+siglip", SIGLIP, "phi-3-instruct-4b", ONE_STAGE, "letterbox", {}),
    ("vicuna-no-cotraining+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {}),
    ("llama2-no-cotraining+7b", CLIP, LLAMA2, ONE_STAGE, "letterbox", {}),
    ("train-1.25-epochs+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {"finetune_max_steps": 6500}),
    ("train-1.5-epochs+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {"finetune_max_steps": 7800}),
    ("train-2-epochs+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {"finetune_epochs": 2}),
    ("train-3-epochs+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {"finetune_epochs": 3}),
    ("llava-lvis4v+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {}),
    ("llava-lrv+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {}),
    ("llava-lvis4v-lrv+7b", CLIP, VICUNA, ONE_STAGE, "letterbox", {}),
    ("prism-clip-controlled+7b", CLIP, LLAMA2, ONE_STAGE, "resize-naive", {}),
    ("prism-clip-controlled+13b", CLIP, LLAMA2_13B, ONE_STAGE, "resize-naive", {}),
    ("prism-clip+7b", CLIP, LLAMA2, ONE_STAGE, "resize-naive", TWO_EPOCHS),
    ("prism-clip+13b", CLIP, LLAMA2_13B, ONE_STAGE, "resize-naive", TWO_EPOCHS),
    ("prism-siglip-controlled+7b", SIGLIP, LLAMA2, ONE_STAGE, "resize-naive", {}),
    ("prism-siglip-controlled+13b", SIGLIP, LLAMA2_13B, ONE_STAGE, "resize-naive", {}),
    ("prism-siglip+7b", SIGLIP, LLAMA2, ONE_STAGE, "resize-naive", TWO_EPOCHS),
    ("prism-siglip+13b", SIGLIP, LLAMA2_13B, ONE_STAGE, "resize-naive", TWO_EPOCHS),
    ("prism-dinosiglip-controlled+7b", DINOSIGLIP, LLAMA2, FUSED, "resize-naive", {}),
    ("prism-dinosiglip-controlled+13b", DINOSIGLIP, LLAMA2_13B, FUSED, "resize-naive", {}),
    ("prism-dinosiglip+7b", DINOSIGLIP, LLAMA2, FUSED, "resize-naive", TWO_EPOCHS),
    ("prism-dinosiglip+13b", DINOSIGLIP, LLAMA2_13B, FUSED, "resize-naive", TWO_EPOCHS),
    ("prism-dinosiglip-224px-controlled+7b", "dinosiglip-vit-so-224px", LLAMA2, FUSED, "resize-naive", {}),
    ("prism-dinosiglip-224px+7b", "dinosiglip-vit-so-224px", LLAMA2, FUSED, "resize-naive", TWO_EPOCHS),
    (
        "tiny-video",
        "tiny-vit",
        "tiny-llama",
        ONE_STAGE,
        "resize-naive",
        {
            "pretrained_backbones": False,
            "num_frames": 4,
            "llm_max_length": 512,
            "finetune_epochs": 6,
            "finetune_global_batch_size": 16,
            "finetune_per_device_batch_size": 16,
            "finetune_learning_rate": 2e-3,
            "finetune_weight_decay": 0.05,
            "finetune_warmup_ratio": 0.05,
            "align_global_batch_size": 16,
            "align_per_device_batch_size": 16,
            "enable_gradient_checkpointing": False,
        },
    ),
    # Its parts are those of --model.model_path, and its aligned projector is among them.
    (NATIVE_MODEL_ID, "", "", "no-align+", "processor", {"visual_token_layout": "inline"}),
]


def _register(model_id: str, vision: str, llm: str, arch: str, resize: str, overrides: dict[str, Any]) -> None:
    values = {
        "model_id": model_id,
        "vision_backbone_id": vision,
        "llm_backbone_id": llm,
        "arch_specifier": arch,
        "image_resize_strategy": resize,
        **overrides,
    }
    types = ModelConfig.__dataclass_fields__
    changed = [(name, types[name].type, field(default=value)) for name, value in values.items()]
    namespace = {"__module__": __name__, "__doc__": f"Preset {model_id}."}
    preset = make_dataclass("Preset_" + model_id, changed, bases=(ModelConfig,), namespace=namespace)
    ModelConfig.register_subclass(model_id)(preset)


for _row in PRESETS:
    _register(*_row)
