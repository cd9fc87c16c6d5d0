"""Small VLMs of the families that can be exported, with tokenizers of the published kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.tokenizer_kinds import make as make_tokenizer

# family: (kind of tokenizer, template, what differs in the configuration)
FAMILIES = {
    "llama": ("llama2-legacy", "vicuna-v15", {}),
    "mistral": ("llama2", "mistral-instruct", {"sliding_window": None}),
    "qwen2": ("qwen2", "qwen-2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen2", "qwen-2", {"head_dim": 8}),
    "gemma": ("gemma", "gemma-instruct", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma3_text": ("gemma", "gemma-instruct", {"head_dim": 8, "sliding_window": 16, "tie_word_embeddings": True}),
    "gemma2": ("gemma", "gemma-instruct", {"head_dim": 8, "tie_word_embeddings": True}),
    "phi3": ("phi3", "phi-3", {}),
}
TOWERS = {
    "clip": "vit_base_patch16_clip_quickgelu_224.openai",
    "siglip": "vit_base_patch16_siglip_224.webli",
}


@pytest.fixture(scope="session")
def make_vlm() -> Callable[..., torch.nn.Module]:
    """family, tower -> a VLM with lively weights; spare: rows of the vocabulary beyond the tokenizer's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from prismatic.models.aggregators import build_aggregator
    from prismatic.models.llm.hf_causal import HFCausalLM
    from prismatic.models.projectors import build_projector
    from prismatic.models.vision.timm_vit import ViTSpec
    from prismatic.models.vlm import PrismaticVLM
    from prismatic.prompting import TEMPLATES

    def make(
        family: str = "llama",
        tower: str = "clip",
        *,
        spare: int = 0,
        layout: str = "after-bos",
        resize: str = "resize-naive",
        projector: str = "gelu-mlp",
        aggregator: str = "concat",
    ) -> PrismaticVLM:
        kind, template, changes = FAMILIES[family]
        tokenizer = make_tokenizer(kind)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        config = AutoConfig.for_model(
            family,
            **{
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": len(tokenizer) + spare,
                "max_position_embeddings": 512,
                **ids,
                **changes,
            },
        )
        vision = ViTSpec(TOWERS[tower], 32, kwargs={"embed_dim": 24, "depth": 3, "num_heads": 2}).build(
            pretrained=False, seed=0
        )
        llm = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if family == "gemma2" else "sdpa")
        generator = torch.Generator().manual_seed(0)
        for name, parameter in (*llm.named_parameters(), *vision.named_parameters()):
            if parameter.ndim > 1 or "bias" in name:
                torch.nn.init.normal_(parameter, std=0.6 if "embed" in name else 0.25, generator=generator)
        return PrismaticVLM(
            vision,
            build_aggregator(aggregator, vision_dim=24, num_patches=4),
            build_projector(projector, 24, 32),
            HFCausalLM(llm, tokenizer),
            template=TEMPLATES.get(template),
            layout=layout,
            num_frames=4,
            resize_strategy=resize,
        ).eval()

    return make
