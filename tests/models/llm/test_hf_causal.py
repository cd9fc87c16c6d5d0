"""Packed examples never see each other, whatever the family: by their positions, or taken apart."""

from __future__ import annotations

import pytest
import torch

from prismatic.models.llm.hf_causal import SEPARATES_BY_POSITION, HFCausalLM

OTHERS = ("bloom", "falcon", "mamba", "mpt", "opt", "xglm")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OWN_NAMES = {
    "bloom": {"n_head": 4},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
}


def small(model_type: str, tokenizer) -> HFCausalLM:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**SMALL, **OWN_NAMES.get(model_type, {})})
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in llm.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return HFCausalLM(llm, tokenizer)


@pytest.mark.parametrize("model_type", [*sorted(SEPARATES_BY_POSITION), *OTHERS])
def test_packed_equals_separate(model_type, tokenizer):
    llm = small(model_type, tokenizer)
    assert llm.separates == (model_type not in OTHERS) and len(llm.layers) == 2 and llm.context_length >= 64
    ids = torch.randint(3, 290, (2, 14), generator=torch.Generator().manual_seed(1))
    borders = [(0, 0, 6), (0, 6, 14), (1, 0, 9), (1, 9, 11)]  # row, begin, end; the last row ends in padding
    position_ids = torch.zeros(2, 14, dtype=torch.long)
    expected, places = 0.0, []
    with torch.no_grad():
        for row, begin, end in borders:
            position_ids[row, begin:] = torch.arange(14 - begin)
            alone = llm.llm(input_ids=ids[row : row + 1, begin:end]).logits[0, :-1].log_softmax(-1)
            expected -= float(alone.gather(1, ids[row, begin + 1 : end, None]).sum())
            places += [row * 14 + i for i in range(begin, end - 1)]
        at = torch.tensor(places)
        packed = llm.token_losses(llm.embed(ids), position_ids, at, ids.flatten()[at + 1])
    assert float(packed) == pytest.approx(expected, abs=1e-3, rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "cohere", "granite", "bloom", "opt", "qwen3_moe"])
def test_chunks_of_the_head_change_neither_loss_nor_gradients(model_type, tokenizer, monkeypatch):
    """Soft-capping (gemma2), scaled logits (cohere, granite), a head that is no layer of its own call (opt)."""
    from prismatic.models.llm import hf_causal

    found, rows = [], []
    for chunk in (1024, 4):
        monkeypatch.setattr(hf_causal, "HEAD_ROWS", chunk)
        llm = small(model_type, tokenizer)
        llm.llm.get_output_embeddings().register_forward_hook(lambda m, i, o: rows.append(o.shape[:-1].numel()))
        ids = torch.randint(3, 290, (2, 14), generator=torch.Generator().manual_seed(1))
        embeds = llm.embed(ids).detach().requires_grad_()
        places = torch.tensor([1, 3, 4, 5, 9, 12, 15, 16, 20, 21, 26])
        loss = llm.token_losses(embeds, None, places, ids.flatten()[places + 1])
        loss.backward()
        with torch.no_grad():
            silent = llm.token_losses(embeds, None, places, ids.flatten()[places + 1])
        assert float(silent) == pytest.approx(float(loss.detach()), rel=1e-6)
        found.append([loss.detach(), embeds.grad, *[p.grad for p in llm.llm.parameters() if p.grad is not None]])
        assert model_type == "opt" or max(rows) <= (11 if chunk > 4 else 4)
        rows.clear()
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-4)


def test_rows_taken_apart_keep_their_gradients(tokenizer):
    llm = small("bloom", tokenizer)
    embeds = torch.randn(1, 8, 32, requires_grad=True)
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    llm.token_losses(embeds, position_ids, torch.tensor([5, 6]), torch.tensor([7, 8])).backward()
    assert not embeds.grad[0, :5].any() and embeds.grad[0, 5:7].abs().sum() > 0


def test_flash_attention_gets_one_row(tokenizer):
    llm = small("llama", tokenizer)
    llm.llm.config._attn_implementation_internal = "flash_attention_2"
    embeds, positions = torch.randn(2, 5, 32), torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]])
    rows, at, places = llm._separate(embeds, positions, torch.tensor([3, 7]))
    assert rows.shape == (1, 10, 32) and at.tolist() == [positions.flatten().tolist()] and places.tolist() == [3, 7]


def test_layers_are_found_where_they_can_be_replaced(tokenizer):
    llm = small("gpt2", tokenizer)
    assert llm.layers is llm.llm.transformer.h
    before = len(llm.state_dict())
    llm.layers[0] = torch.nn.Sequential(llm.layers[0])
    assert len(llm.state_dict()) == before, "layers must not be registered twice"
