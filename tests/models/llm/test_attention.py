"""Attention of packed examples: exact for every family, without a mask of the whole row; words for what is missing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prismatic.models.llm import attention
from prismatic.models.llm.attention import OURS, borders_of, choose_attention, packed, use_attention
from prismatic.models.llm.hf_causal import SEPARATES_BY_POSITION
from tests.models.llm.test_hf_causal import small

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_SDPA = {"gemma2", "gptj"}  # soft-capped scores; attention code of its own
LENGTHS = (5, 9, 1, 7)
# What the small models of some families need so that their layers attend in windows of 4.
WINDOWS = {"mistral": 4, "phi3": 4, "starcoder2": 4, "gemma3_text": 4, "mixtral": 4}


def sdpa(model_type: str, tokenizer):
    llm = small(model_type, tokenizer)
    config = llm.llm.config
    if model_type in WINDOWS:
        config.sliding_window = 4
        for module in llm.llm.modules():
            if getattr(module, "sliding_window", None) is not None:
                module.sliding_window = 4
    llm.llm.set_attn_implementation("sdpa")
    return llm


@pytest.mark.parametrize("model_type", sorted(SEPARATES_BY_POSITION - NO_SDPA))
def test_packed_examples_have_the_loss_and_gradients_of_single_ones(model_type, tokenizer):
    alone, together = sdpa(model_type, tokenizer), sdpa(model_type, tokenizer)
    assert not alone.packs and use_attention(together, "auto", CPU, half=False) == OURS["sdpa"] and together.packs
    ids = torch.randint(3, 290, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    total = 0.0
    for part in ids.split(LENGTHS):
        if len(part) > 1:
            loss = alone.token_losses(alone.embed(part[None]), None, torch.arange(len(part) - 1), part[1:])
            loss.backward()
            total += float(loss.detach())
    position_ids = torch.cat([torch.arange(n) for n in LENGTHS])
    places = (position_ids.roll(-1) != 0).nonzero()[:, 0]
    # Two rows of 11: borders are found in the flattened batch.
    got = together.token_losses(together.embed(ids.view(2, -1)), position_ids.view(2, -1), places, ids.roll(-1)[places])
    got.backward()
    assert float(got.detach()) == pytest.approx(total, rel=1e-5)
    expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    for name, parameter in together.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=2e-4, rtol=1e-3)


def test_no_mask_of_the_whole_row_is_made(tokenizer, monkeypatch):
    seen = []
    plain = F.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **options):
        seen.append((query.shape[2], attn_mask))
        return plain(query, key, value, attn_mask=attn_mask, **options)

    llm = sdpa("llama", tokenizer)
    use_attention(llm, "sdpa", CPU, half=False)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    position_ids = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    llm.token_losses(llm.embed(torch.arange(3, 25)[None]), position_ids, torch.tensor([0]), torch.tensor([4]))
    # The last layer works for the one label alone (last_layer.py).
    assert seen[:4] == [(n, None) for n in LENGTHS] and [(n, m.shape) for n, m in seen[4:]] == [(1, (1, 1))]


def test_a_model_that_ignores_the_borders_is_caught():
    with pytest.raises(AssertionError, match="packed examples see each other"), packed(torch.tensor([0, 3, 5])):
        pass
    assert attention._current.get() is None


def test_borders_are_where_positions_restart():
    assert borders_of(torch.tensor([0, 1, 2, 0, 0, 1])).tolist() == [0, 3, 4, 6]


def test_asking_is_as_with_sdpa(make_vlm):
    vlm, prompt = make_vlm(), "What happens?"
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    before = vlm.generate_batch([frames, None], [prompt, "A red circle"], max_new_tokens=5)
    use_attention(vlm.llm_backbone, "auto", CPU, half=False)
    assert vlm.generate_batch([frames, None], [prompt, "A red circle"], max_new_tokens=5) == before


def test_families_keep_what_they_have_with_auto_and_are_named_otherwise(tokenizer):
    soft, own, apart = (small(name, tokenizer) for name in ("gemma2", "gptj", "bloom"))
    for llm in (soft, own, apart):
        assert use_attention(llm, "auto", CPU, half=False) == "eager" and not llm.packs
    with pytest.raises(ValueError, match=r"--model.attention sdpa: Gemma2ForCausalLM has no SDPA attention"):
        use_attention(soft, "sdpa", CPU, half=False)
    for llm in (own, apart):
        with pytest.raises(ValueError, match=r"--model.attention sdpa is not for a (gptj|bloom) model"):
            use_attention(llm, "sdpa", CPU, half=False)


def test_the_best_there_is(monkeypatch):
    assert choose_attention("auto", CPU, half=True) == "sdpa"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_attention("auto", CUDA, half=True) == "varlen"
    assert choose_attention("auto", CUDA, half=False) == "sdpa"
    monkeypatch.setattr(attention, "_varlen", lambda: None)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name == "flash_attn")
    assert choose_attention("auto", CUDA, half=True) == "flash"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_attention("auto", CUDA, half=True) == "sdpa"


@pytest.mark.parametrize(
    ("kind", "device", "half", "words"),
    [
        ("fast", CPU, True, "must be one of auto, sdpa, flex, flash, varlen, got 'fast'"),
        ("flex", CPU, True, "flex needs a GPU, and this run is on cpu; pass --model.attention auto"),
        ("flash", CPU, True, "flash needs a GPU"),
        ("varlen", CUDA, False, "varlen computes in bf16 only; it needs --model.enable_mixed_precision_training true"),
        ("flash", CUDA, True, "flash needs the package flash-attn: pip install flash-attn"),
    ],
)
def test_what_is_not_there_is_said(kind, device, half, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        choose_attention(kind, device, half)
    assert words in str(error.value)


def test_varlen_hands_its_kernel_borders_window_and_scale(monkeypatch):
    """The kernel runs on GPUs only; what it is given is compared with SDPA by a stand-in with its signature."""
    calls = []

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        calls.append((cu_q.tolist(), max_q, window_size, enable_gqa))
        outs = []
        for begin, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
            part = [t[begin:end].transpose(0, 1)[None].float() for t in (q, k, v)]
            mask = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
            if window_size[0] >= 0:
                mask &= torch.ones_like(mask).triu(-window_size[0])
            out = F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
            outs.append(out[0].transpose(0, 1).to(q.dtype))
        return torch.cat(outs)

    monkeypatch.setattr(attention, "_varlen", lambda: kernel)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    q, k, v = (torch.randn(1, heads, 14, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    borders = torch.tensor([0, 9, 14], dtype=torch.int32)
    for window in (None, 4):
        options = {"scaling": 0.3, "sliding_window": window}
        ours = attention._by_varlen(module, q, k, v, borders, **options)[0]
        plain = attention._by_segment(module, q, k, v, borders, **options)[0]
        assert ours.shape == plain.shape == (1, 14, 4, 8)
        torch.testing.assert_close(ours, plain, atol=2e-2, rtol=2e-2)
    assert calls == [([0, 9, 14], 9, (-1, 0), True), ([0, 9, 14], 9, (3, 0), True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["sdpa", "varlen"])
def test_on_a_gpu_packed_is_single(kind, tokenizer):
    llm = sdpa("qwen2", tokenizer).to(CUDA, torch.bfloat16)
    ids = torch.randint(3, 290, (22,), device=CUDA)
    alone = sum(
        float(llm.token_losses(llm.embed(p[None]), None, torch.arange(len(p) - 1, device=CUDA), p[1:]).detach())
        for p in ids.split([9, 13])
    )
    use_attention(llm, kind, CUDA, half=True)
    position_ids = torch.cat([torch.arange(n) for n in (9, 13)]).to(CUDA)[None]
    places = (position_ids[0].roll(-1) != 0).nonzero()[:, 0]
    got = llm.token_losses(llm.embed(ids[None]), position_ids, places, ids.roll(-1)[places])
    assert float(got.detach()) == pytest.approx(alone, rel=2e-2)
