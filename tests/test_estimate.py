"""The formulas against numbers worked out by hand, and against what torch counts."""

from __future__ import annotations

import pytest
import torch

from prismatic.estimate import Load, Part, estimate

NOTHING = Part(0, 0, 0, 0, 1, gradient="none")


def load(**changes: float) -> Load:
    values = {"frames": 0, "patches": 0, "visual": 0, "text": 100, "labels": 10, "examples": 4, "at_a_time": 2}
    return Load(**{**values, **changes})


def test_six_flops_a_weight_and_token_and_eight_when_recomputed():
    for recomputed, factor in ((False, 6), (True, 8)):
        llm = Part(1000, 1000, 1000, 0, 8, gradient="trained", recomputed=recomputed)
        cost = estimate(NOTHING, NOTHING, llm, load(labels=0), vocabulary=50, shards=1, half=True)
        assert cost.flops == factor * 1000 * 100 * 4


def test_forward_flops_are_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=320
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    size = sum(p.numel() for p in model.parameters())
    matmul = size - 2 * 320 * 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 48, dtype=torch.long))
    part = Part(size, 0, matmul, 3, 64, gradient="none")
    cost = estimate(NOTHING, NOTHING, part, load(text=48, labels=48, examples=1), vocabulary=320, shards=1, half=False)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_memory_by_what_holds_it():
    llm = Part(2000, 1500, 2000, 4, 8, gradient="trained", recomputed=True)
    one = estimate(NOTHING, NOTHING, llm, load(), vocabulary=50, shards=1, half=True).memory
    four = estimate(NOTHING, NOTHING, llm, load(), vocabulary=50, shards=4, half=True).memory
    assert one["trained weights, gradients, AdamW"] == 16 * 1500 == 4 * four["trained weights, gradients, AdamW"]
    assert one["frozen weights"] == 2 * 500 and one["gathered layers"] == 0 and four["gathered layers"] == 2000
    assert one["activations"] - 34 * 0 == 2 * 100 * 8 * (2 * 4 + 34) + 0
    kept = Part(2000, 1500, 2000, 4, 8, gradient="trained")
    assert estimate(NOTHING, NOTHING, kept, load(), vocabulary=50, shards=1, half=True).memory["activations"] == (
        2 * 100 * 8 * 34 * 4
    )
    assert one["logits of label tokens"] == 2 * 10 * 50 * 10
