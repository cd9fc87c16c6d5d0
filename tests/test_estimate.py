"""The formulas against numbers worked out by hand, and against what torch counts."""

from __future__ import annotations

import pytest
import torch

from prismatic.estimate import Load, Part, step_flops

NOTHING = Part(0, 0, 0, 0, 1, gradient="none")


def load(**changes: float) -> Load:
    values = {"frames": 0, "patches": 0, "visual": 0, "text": 100, "labels": 10, "examples": 4}
    return Load(**{**values, **changes})


def test_six_flops_a_weight_and_token_and_eight_when_recomputed():
    for recomputed, factor in ((False, 6), (True, 8)):
        llm = Part(1000, 1000, 1000, 0, 8, gradient="trained", recomputed=recomputed)
        flops = step_flops(NOTHING, NOTHING, llm, load(labels=0), vocabulary=50)
        assert flops == factor * 1000 * 100 * 4


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
    flops = step_flops(NOTHING, NOTHING, part, load(text=48, labels=48, examples=1), vocabulary=320)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.02)
