"""RoPE scaling: the context it makes, Transformers' own numbers, and what cannot be stretched."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from prismatic.models.llm.build import build_llm
from prismatic.models.llm.rope import KINDS, context_length, rope_factor, scale_rope

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "vocab_size": 300},
}


def config(**changes) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_context_and_logits(kind):
    ours = config()
    scale_rope("x", ours, 4.0, kind)
    assert context_length(ours) == 256 and rope_factor(ours) == 4.0 and rope_factor(config()) == 1.0
    again = LlamaConfig.from_dict(ours.to_dict())
    scale_rope("x", again, 4.0, kind)
    assert again.rope_parameters == ours.rope_parameters and context_length(again) == 256
    theta = {"rope_theta": 10000.0}
    official = {
        "dynamic": config(rope_parameters={"rope_type": "dynamic", "factor": 4.0, **theta}),
        "linear": config(rope_parameters={"rope_type": "linear", "factor": 4.0, **theta}, max_position_embeddings=256),
        "yarn": config(
            rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **theta},
            max_position_embeddings=256,
        ),
    }[kind]
    torch.manual_seed(0)
    one = LlamaForCausalLM(ours).eval()
    two, plain = LlamaForCausalLM(official).eval(), LlamaForCausalLM(config()).eval()
    for model in (two, plain):
        model.load_state_dict(one.state_dict())
    ids = torch.randint(0, 300, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(one(ids).logits, two(ids).logits, atol=1e-4, rtol=0)
        assert (one(ids).logits - plain(ids).logits).abs().max() > 1e-4
        short = (one(ids[:, :50]).logits - plain(ids[:, :50]).logits).abs().max()
    assert (short < 1e-6) == (kind == "dynamic"), "dynamic scaling leaves the original context alone"


@pytest.mark.parametrize("kind", KINDS)
def test_through_build_llm(kind, tmp_path):
    options = {"pretrained": False, "rope_scaling_factor": 2.0, "rope_scaling_type": kind}
    llm = build_llm("tiny-llama", texts=lambda: ["a b c"], **options)
    assert llm.context_length == 4096 and llm.rope_factor == 2.0
    llm.save_definition(tmp_path)
    again = build_llm("tiny-llama", tokenizer=tmp_path, **options)
    assert again.context_length == 4096


def test_what_cannot_stretch():
    llama3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 32
    for cfg, said in (
        (config(rope_parameters=llama3), "is 'llama3', which cannot stretch"),
        (AutoConfig.for_model("gpt2"), "is absent, which cannot stretch"),
        (AutoConfig.for_model("gemma3_text"), "is of several kinds, which cannot stretch"),
    ):
        assert rope_factor(cfg) is None
        with pytest.raises(ValueError, match=said):
            scale_rope("x", cfg, 2.0, "yarn")
    with pytest.raises(ValueError, match=r"--model.rope_scaling_factor must be at least 1, got 0.5"):
        scale_rope("x", config(), 0.5, "linear")
    with pytest.raises(ValueError, match=r"--model.rope_scaling_type must be dynamic, linear, yarn, got 'ntk'"):
        scale_rope("x", config(), 2.0, "ntk")
