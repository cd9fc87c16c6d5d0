"""Small models of several families, with a tokenizer trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

TEXTS = ["A red circle moves to the left and stops.", "A small blue square splits in two.", "What happens? yes no 1 2"]

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": None},
    "mistral-sliding": {"sliding_window": 6},
    "phi3": {"pad_token_id": 0},
    "gemma": {"head_dim": 8, "tie_word_embeddings": False},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "tie_word_embeddings": False},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "tie_word_embeddings": False},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `family` runs for each of them."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer."""
    from prismatic.models.llm.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS * 3, 320)


@pytest.fixture(scope="session")
def make_llm(tokenizer) -> Callable[..., torch.nn.Module]:
    """family -> HFCausalLM with two layers of width 32 and lively weights; eager=True picks eager attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from prismatic.models.llm.hf_causal import HFCausalLM

    def make(family: str = "llama", *, eager: bool = False, context: int = 512) -> HFCausalLM:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": context,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        config = AutoConfig.for_model(family.removesuffix("-sliding"), **{**sizes, **FAMILIES[family]})
        torch.manual_seed(0)
        # Transformers 5.23 refuses SDPA for Gemma-2.
        attention = "eager" if eager or family == "gemma2" else "sdpa"
        llm = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for name, parameter in llm.named_parameters():
            if parameter.ndim > 1:  # the default spread of 0.02 makes nearly uniform predictions
                torch.nn.init.normal_(parameter, std=0.25 if "embed" not in name else 0.6)
        return HFCausalLM(llm, tokenizer)

    return make


@pytest.fixture(scope="session")
def make_vlm(make_llm) -> Callable[..., torch.nn.Module]:
    """A VLM of a 2-block ViT (4 patches a frame of 16 pixels) and a small LLM."""
    from prismatic.models.aggregators import build_aggregator
    from prismatic.models.projectors import build_projector
    from prismatic.models.vision.timm_vit import CustomViTSpec
    from prismatic.models.vlm import PrismaticVLM
    from prismatic.prompting import TEMPLATES

    def make(
        family: str = "llama",
        *,
        aggregator: str = "concat",
        layout: str = "after-bos",
        template: str = "pure",
        num_frames: int = 2,
        **llm,
    ) -> PrismaticVLM:
        sizes = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "class_token": True}
        vision = CustomViTSpec(16, sizes).build(pretrained=False, seed=3)
        parts = make_llm(family, **llm)
        torch.nn.init.normal_(vision.featurizer.pos_embed)
        return PrismaticVLM(
            vision,
            build_aggregator(
                aggregator, vision_dim=24, num_patches=4, options={"heads": 2} if "-att" in aggregator else {}
            ),
            build_projector("gelu-mlp", 24, 32, seed=5),
            parts,
            template=TEMPLATES.get(template),
            layout=layout,
            num_frames=num_frames,
        ).eval()

    return make
