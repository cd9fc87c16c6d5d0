"""Attention by blocks of queries is PyTorch's own, to the rounding of fp32, and leaves to it what it is not for."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from prismatic.models.linear import prefers_onednn
from prismatic.models.llm import causal
from prismatic.models.llm.attention import use_attention
from prismatic.train.layers import checkpoint_layers
from tests.models.llm.test_attention import CPU, sdpa
from tests.models.llm.test_last_layer import losses

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")), reason="no oneDNN"
)


def made(heads: int, shared: int, length: int, width: int = 16, rows: int = 1) -> list[torch.Tensor]:
    """Queries, keys and values as layers make them: heads inside."""
    torch.manual_seed(length)
    return [torch.randn(rows, length, n, width).transpose(1, 2).requires_grad_() for n in (heads, shared, shared)]


@needs_onednn
@pytest.mark.parametrize(("heads", "shared", "rows"), [(4, 4, 1), (14, 2, 1), (6, 1, 3)])
@pytest.mark.parametrize("length", [1, 31, 256, 300])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_result_and_gradients_are_those_of_pytorch(heads, shared, rows, length, scale):
    tensors = made(heads, shared, length, rows=rows)
    above = torch.randn(rows, heads, length, 16)
    expected = F.scaled_dot_product_attention(*tensors, is_causal=True, scale=scale, enable_gqa=heads != shared)
    got = causal.attend(*tensors, scale)
    assert got.stride() == tensors[0].stride()  # the layer takes the heads apart without a copy
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(out, tensors, above) for out in (got, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@needs_onednn
def test_memory_grows_with_the_length_alone():
    seen = []

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor.numel())
        return tensor

    tensors = made(2, 1, 700)
    with torch.autograd.graph.saved_tensors_hooks(watched, lambda tensor: tensor):
        causal.attend(*tensors).sum().backward()
    assert seen == [tensor.numel() for tensor in tensors]


def test_a_window_looks_back_so_far():
    at = torch.tensor([0, 2, 5])
    everything, narrow = causal.band(at, 6, None), causal.band(at, 6, 3)
    assert everything.sum(1).tolist() == [1, 3, 6] and narrow.sum(1).tolist() == [1, 3, 3]
    assert narrow[2].tolist() == [False, False, False, True, True, True]


def test_what_it_is_not_for_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(causal, "prefers_onednn", lambda: True)
    query, key, value = made(4, 2, causal._SHORTEST)
    assert causal.takes(query, key, value, 0.0)
    assert not causal.takes(query, key, value, 0.1)
    assert not causal.takes(*(t.bfloat16() for t in (query, key, value)), 0.0)
    assert not causal.takes(*(t[:, :, 1:] for t in (query, key, value)), 0.0)  # short
    assert not causal.takes(query[:, :, -1:], key, value, 0.0)  # the next word of an answer
    assert not causal.takes(*(t.to("meta") for t in (query, key, value)), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not causal.takes(query, key, value, 0.0)
    monkeypatch.setattr(causal, "prefers_onednn", lambda: False)
    assert not causal.takes(query, key, value, 0.0)


@pytest.mark.skipif(not prefers_onednn(), reason="not used on this processor")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("how", ["none", "full", "selective"])
def test_a_model_trains_as_with_pytorchs(how, packed, tokenizer, monkeypatch):
    """Packed and padded, recomputed or not; with `selective`, its result is kept and it runs forward once."""
    plain = sdpa("qwen2", tokenizer)
    ours = copy.deepcopy(plain)
    use_attention(ours, "sdpa", CPU, half=False)
    checkpoint_layers(ours.layers, how)
    monkeypatch.setattr(causal, "_SHORTEST", 2)
    blocks = []
    chances = causal._chances
    monkeypatch.setattr(causal, "_chances", lambda *parts: blocks.append(parts[0].shape) or chances(*parts))
    expected, got = losses(plain, packed), losses(ours, packed)
    examples, heads = 4, plain.llm.config.num_key_value_heads
    layers = len(plain.layers) - 1  # the last one attends at label positions alone
    assert len(blocks) == layers * examples * heads * (3 if how == "full" else 2)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.skipif(not prefers_onednn(), reason="not used on this processor")
def test_windows_are_pytorchs(tokenizer, monkeypatch):
    monkeypatch.setattr(causal, "_SHORTEST", 2)
    monkeypatch.setattr(causal, "attend", lambda *_: pytest.fail("a window was looked past"))
    llm = sdpa("mistral", tokenizer)
    use_attention(llm, "sdpa", CPU, half=False)
    position_ids = torch.cat([torch.arange(5), torch.arange(9)])[None]
    places = torch.tensor([3])
    llm.token_losses(llm.embed(torch.arange(3, 17)[None]), position_ids, places, torch.tensor([4]))
