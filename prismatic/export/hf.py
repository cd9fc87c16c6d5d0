"""A trained model as a Transformers folder: LlavaForConditionalGeneration, or FastVLM's class for FastViT-HD.

Weights, configuration, processor, chat template, generation settings and a model card; Transformers loads it without
the code here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prismatic.export.card import write_card
from prismatic.export.errors import ExportError
from prismatic.export.processor import ExportedProcessor, export_processor
from prismatic.export.tokens import ExportedTokenizer, export_tokenizer
from prismatic.export.vision import VisionTower, convert_vision, vision_state
from prismatic.models.aggregators.pooling import Concat
from prismatic.models.generation import DEFAULT_NEW_TOKENS, end_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from prismatic.models.vlm import PrismaticVLM

# Families whose head is one matrix behind the body, as in LLaVA's class; each is tested.
TEXT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")

PUBLISHED_NAMES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""Beginnings of the names of weights in Transformers' LLaVA class, and in checkpoints such as llava-1.5-7b-hf."""


@dataclass(frozen=True)
class HFExport:
    """What a folder is made of. tokenizer: its ids and rows. processor: pixels and chat format."""

    tower: VisionTower
    tokenizer: ExportedTokenizer
    processor: ExportedProcessor


def prepare(vlm: PrismaticVLM) -> HFExport:
    """Everything but the weights. Raises ExportError with the reason when Transformers has no class for the model."""
    if getattr(vlm.llm_backbone, "adapter", None) is not None:
        raise ExportError("the LLM has LoRA adapters beside its weights; pass --merge_lora true to add them up")
    if not isinstance(vlm.aggregator, Concat):
        raise ExportError(
            f"--model.frame_aggregator {type(vlm.aggregator).__name__}: Transformers' classes take the features of all "
            "frames one after another, which is concat"
        )
    _linear_layers(vlm.projector)
    _check_llm(vlm.llm_backbone.llm)
    tower = convert_vision(vlm.vision_backbone)
    tokenizer = export_tokenizer(vlm)
    spec = vlm.vision_backbone.image_spec
    return HFExport(tower, tokenizer, export_processor(spec, vlm.resize_strategy, tower, tokenizer.tokenizer))


def write(vlm: PrismaticVLM, export: HFExport, folder: Path, *, name: str, dtype: torch.dtype) -> None:
    """Write the folder. name: of the model, for its card. dtype: of the weights; `vlm` must have it already."""
    model = build_model(vlm, export, dtype)
    model.generation_config = _generation_config(vlm, export)
    if export.tower.kind == "fastvit":
        model.save_pretrained(folder)
    else:
        _save_llava(model, folder)
    export.processor.processor.save_pretrained(folder)
    write_card(folder, vlm, export, name=name)


def _save_llava(model: PreTrainedModel, folder: Path) -> None:
    """What `save_pretrained` writes, with the names of weights of the published LLaVA checkpoints.

    Transformers 5 leaves `vision_model.` out when it saves (and reads both); vLLM and Transformers 4 know no other.
    """
    from huggingface_hub import save_torch_state_dict

    state = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        for ours, published in PUBLISHED_NAMES.items():
            if key.startswith(ours):
                key = published + key.removeprefix(ours)
                break
        # Queries, keys and values of a timm tower are parts of one tensor, which no file takes apart.
        state[key] = value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_torch_state_dict(state, folder, metadata={"format": "pt"})


def build_model(vlm: PrismaticVLM, export: HFExport, dtype: torch.dtype) -> PreTrainedModel:
    """The Transformers model with the weights of `vlm`, sharing memory with them; to be saved, not to be run."""
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlavaConfig, LlavaForConditionalGeneration

    tower, llm = export.tower, vlm.llm_backbone.llm
    text = copy.deepcopy(llm.config)
    text.vocab_size, text.dtype = export.tokenizer.rows, dtype
    # vLLM picks the LLM's class by it; and where the configuration was read from is nobody's business.
    text.architectures, text._name_or_path = [type(llm).__name__], ""
    fast = tower.kind == "fastvit"
    config_class = FastVlmConfig if fast else LlavaConfig
    config = config_class(
        vision_config=tower.config,
        text_config=text,
        image_token_index=export.tokenizer.image_id,
        image_seq_length=vlm.vision_backbone.num_patches,
        projector_hidden_act="gelu",
        vision_feature_layer=tower.feature_layer,
        vision_feature_select_strategy="default" if tower.extra_tokens else "full",
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
        dtype=dtype,
    )
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, key, getattr(llm.config, key, None))
    with torch.device("meta"):
        model = (FastVlmForConditionalGeneration if fast else LlavaForConditionalGeneration)(config)
    state = _state(vlm, export, tied=config.tie_word_embeddings)
    result = model.load_state_dict(state, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.tie_weights()
    missing = [key for key in result.missing_keys if not (config.tie_word_embeddings and key == "lm_head.weight")]
    if missing or result.unexpected_keys:
        raise ExportError(
            f"the LLM does not fit Transformers' {type(model).__name__}: {len(missing)} weights have no source "
            f"({'; '.join(missing[:3])}), {len(result.unexpected_keys)} no place "
            f"({'; '.join(result.unexpected_keys[:3])})"
        )
    return model


def _state(vlm: PrismaticVLM, export: HFExport, tied: bool) -> dict[str, torch.Tensor]:
    state = {f"model.vision_tower.{key}": value for key, value in vision_state(vlm.vision_backbone).items()}
    for number, layer in enumerate(_linear_layers(vlm.projector), start=1):
        state[f"model.multi_modal_projector.linear_{number}.weight"] = layer.weight
        state[f"model.multi_modal_projector.linear_{number}.bias"] = layer.bias
    llm = vlm.llm_backbone.llm
    pad = vlm.llm_backbone.tokenizer.pad_token_id
    for key, value in llm.state_dict().items():
        if key == "lm_head.weight":
            if not tied:
                state[key] = _with_rows(value, export.tokenizer.rows, pad)
        elif key == "model.embed_tokens.weight":
            state["model.language_model.embed_tokens.weight"] = _with_rows(value, export.tokenizer.rows, pad)
        else:
            state["model.language_model." + key.removeprefix("model.")] = value
    return {key: value.detach() for key, value in state.items()}


def _with_rows(matrix: torch.Tensor, rows: int, pad: int) -> torch.Tensor:
    # New rows are copies of the padding token's: as an answer they are as unlikely as padding is, where zeros would
    # be a logit of 0, which may well be the greatest.
    extra = rows - len(matrix)
    return torch.cat([matrix, matrix[pad : pad + 1].expand(extra, -1)]) if extra > 0 else matrix


def _linear_layers(projector: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    layers = list(getattr(projector, "projector", nn.Identity()).children())
    kinds = (nn.Linear, nn.GELU, nn.Linear)
    fits = len(layers) == len(kinds) and all(isinstance(layer, kind) for layer, kind in zip(layers, kinds, strict=True))
    if not fits or layers[1].approximate != "none":
        raise ExportError(
            "Transformers' classes have a projector of two layers with GELU between them (--model.arch_specifier "
            "gelu-mlp); this model has another"
        )
    return layers[0], layers[2]


def _check_llm(llm: nn.Module) -> None:
    config = llm.config
    if config.model_type not in TEXT_FAMILIES:
        raise ExportError(
            f"an LLM of the family {config.model_type} cannot be exported (its head, positions or masks differ from "
            f"what LLaVA's class does); those of {', '.join(TEXT_FAMILIES)} can"
        )
    if getattr(config, "final_logit_softcapping", None):
        raise ExportError("the LLM caps its logits softly, which Transformers' LLaVA class leaves out")
    if getattr(llm.get_output_embeddings(), "bias", None) is not None:
        raise ExportError("the LLM's head has a bias, for which Transformers' LLaVA class has no place")


def _generation_config(vlm: PrismaticVLM, export: HFExport) -> GenerationConfig:
    from transformers import GenerationConfig

    llm = vlm.llm_backbone.llm
    rows = llm.get_input_embeddings().weight.shape[0]
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": DEFAULT_NEW_TOKENS,
        "bos_token_id": vlm.llm_backbone.tokenizer.bos_token_id,
        "eos_token_id": end_tokens(vlm, None),
        "pad_token_id": vlm.llm_backbone.tokenizer.pad_token_id,
    }
    if export.tokenizer.rows > rows:
        options["suppress_tokens"] = list(range(rows, export.tokenizer.rows))
    return GenerationConfig(**options)
