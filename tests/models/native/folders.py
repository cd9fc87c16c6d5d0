"""Writes tiny checkpoints of native VLMs: real classes and file layout, small sizes, lively random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TEXTS = [
    "A red circle moves to the left and stops.",
    "A small blue square splits in two.",
    "Describe what is happening in the video. user assistant system You are a helpful assistant.",
]
TEXT_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
CLIP = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
# The chat formats that the publishers ship, in their own words' effect: turns, where media stand, what ends an answer.
QWEN_CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_CHAT = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _tokenizer(special: Sequence[str], chat: str | None, *, begins: bool) -> Any:
    """Byte-level BPE. begins: with a begin token in front, as Llama's; otherwise as Qwen's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    basic = ["<s>", "</s>", "<pad>"] if begins else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*basic, *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if begins:
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=list(special), chat_template=chat, **names
    )


def _lively(model: Any) -> Any:
    """Weights of a spread at which the parts of the input show in the output."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.2)
    return model.float()


def _qwen(kind: str, folder: Path) -> None:
    import transformers
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(special, QWEN_CHAT, begins=False)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip("seiv", special, strict=True)}
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
        vision |= {"window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    prefix = "Qwen2VL" if kind == "qwen2_vl" else "Qwen2_5_VL"
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**TEXT_SIZES, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        vision_start_token_id=ids["s"],
        vision_end_token_id=ids["e"],
        image_token_id=ids["i"],
        video_token_id=ids["v"],
        tie_word_embeddings=False,
    )
    _lively(getattr(transformers, f"{prefix}ForConditionalGeneration")(config)).save_pretrained(folder)
    bounds = {"min_pixels": 28 * 28, "max_pixels": 56 * 84}
    processor = getattr(transformers, f"{prefix}Processor")(
        Qwen2VLImageProcessor(**bounds), tokenizer, Qwen2VLVideoProcessor(**bounds), chat_template=QWEN_CHAT
    )
    processor.save_pretrained(folder)


def _llava(kind: str, folder: Path) -> None:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = _tokenizer(["<image>"], LLAVA_CHAT, begins=True)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **CLIP},
        text_config={"model_type": "llama", **TEXT_SIZES, "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    _lively(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    ).save_pretrained(folder)


def _onevision(kind: str, folder: Path) -> None:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = _tokenizer(["<image>", "<video>"], ONEVISION_CHAT, begins=False)
    pinpoints = [[24, 24], [24, 48], [48, 24], [48, 48]]
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **CLIP, "image_size": 24, "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT_SIZES, "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )
    _lively(LlavaOnevisionForConditionalGeneration(config)).save_pretrained(folder)
    size = {"height": 24, "width": 24}
    LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_CHAT,
    ).save_pretrained(folder)


def _fast(kind: str, folder: Path) -> None:
    from transformers import CLIPImageProcessor, FastVlmConfig, FastVlmForConditionalGeneration, LlavaProcessor

    tokenizer = _tokenizer(["<image>"], ONEVISION_CHAT, begins=False)
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_t8",  # the smallest of the family that FastViT-HD belongs to; stride 32
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 768,
        "model_args": {"inference_mode": True},
    }
    config = FastVlmConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **TEXT_SIZES, "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    _lively(FastVlmForConditionalGeneration(config)).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0] * 3, image_std=[1] * 3
        ),
        tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=ONEVISION_CHAT,
    ).save_pretrained(folder)


def _video_llava(kind: str, folder: Path) -> None:
    from transformers import (
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
        VideoLlavaImageProcessor,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )

    tokenizer = _tokenizer(["<image>", "<video>"], None, begins=True)
    config = VideoLlavaConfig(
        vision_config={"model_type": "clip_vision_model", **CLIP},
        text_config={"model_type": "llama", **TEXT_SIZES, "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=False,
    )
    _lively(VideoLlavaForConditionalGeneration(config)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    VideoLlavaProcessor(
        VideoLlavaImageProcessor(**sizes),
        VideoLlavaVideoProcessor(**sizes),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


FOLDERS = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "llava": _llava,
    "llava_onevision": _onevision,
    "fast_vlm": _fast,
    "video_llava": _video_llava,
}


def write_folder(family: str, folder: Path) -> Path:
    """A tiny checkpoint of a family, with weights, in `folder`."""
    with torch.random.fork_rng(devices=[]):
        FOLDERS[family](family, folder)
    return folder
