"""Official small models, saved as their publishers save them and loaded through us, compute what they did."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from prismatic.models.llm.build import build_llm
from prismatic.models.llm.zoo import ROWS

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 256},
}
# Official class -> its configuration's class, and what the family needs.
OFFICIAL = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 6},
    "PhiForCausalLM": {"num_key_value_heads": 4},
    "Phi3ForCausalLM": {"sliding_window": 6, "pad_token_id": 0},
    "GemmaForCausalLM": {"head_dim": 8},
    "Gemma2ForCausalLM": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "Gemma3ForCausalLM": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 8},
    "SmolLM3ForCausalLM": {"pad_token_id": 0},
}


def official(name: str, tokenizer, **changes):
    """The official class from a small configuration, with weights lively enough to tell models apart."""
    import transformers

    cls = getattr(transformers, name)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": tokenizer.pad_token_id}
    config = cls.config_class(**{**SIZES, "vocab_size": len(tokenizer), **ids, **OFFICIAL[name], **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = cls(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.mark.parametrize("name", OFFICIAL)
def test_logits_are_those_of_the_official_class(name, tokenizer, tmp_path):
    model = official(name, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = build_llm(str(tmp_path), pretrained=True)
    assert type(llm.llm).__name__ == name, "each family has its own class"
    ids = torch.randint(3, 290, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        ours = llm.llm(inputs_embeds=llm.embed(ids)).logits
        places = torch.arange(23)
        loss = llm.token_losses(llm.embed(ids[:1]), None, places, ids[0, 1:])
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    official_loss = torch.nn.functional.cross_entropy(expected[0, :-1], ids[0, 1:], reduction="sum")
    assert float(loss) == pytest.approx(float(official_loss), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_padding_token_beyond_the_published_vocabulary(dtype, tokenizer, tmp_path, monkeypatch):
    """As with Llama-2: 32000 published rows, <PAD> is token 32000, and the embedding grows to a multiple of 64."""
    from dataclasses import replace

    from prismatic.models.llm.zoo import LLMS
    from prismatic.prompting import TEMPLATES

    plain = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    size = len(plain)
    model = official("LlamaForCausalLM", tokenizer, pad_token_id=None).to(dtype)
    model.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    row = replace(LLMS.get("llama2-7b-pure"), hf_path=str(tmp_path), pad_token="<NEWPAD>")
    monkeypatch.setitem(LLMS._entries, "llama2-7b-pure", row)
    llm = build_llm("llama2-7b-pure", pretrained=True, dtype=dtype)
    weight = llm.llm.get_input_embeddings().weight
    assert llm.tokenizer.pad_token_id == size and weight.shape[0] == -(-(size + 1) // 64) * 64
    assert llm.llm.config.pad_token_id == llm.llm.generation_config.pad_token_id == size
    assert torch.equal(weight[:size], model.model.embed_tokens.weight[:size]) and weight.dtype == dtype
    assert TEMPLATES.get("pure").for_tokenizer(llm.tokenizer) is not None


def test_the_rows_build_the_class_that_their_weights_have(tokenizer):
    classes = {"llama": "Llama", "mistral": "Mistral", "phi": "Phi", "phi3": "Phi3", "gemma": "Gemma"}
    classes |= {"gemma2": "Gemma2", "gemma3_text": "Gemma3", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    assert {row.model_type for row in ROWS.values()} == set(classes)
    for name, row in ROWS.items():
        family = name.split("-")[0].rstrip("0123456789.")
        if family in ("phi", "gemma", "mistral", "llama", "qwen") and name != "phi-2-3b":
            assert row.model_type.startswith({"phi": "phi3"}.get(family, family)), name
    for name in ("LlamaForCausalLM", "Phi3ForCausalLM", "GemmaForCausalLM"):
        assert name in {f"{c}ForCausalLM" for c in classes.values()}


def test_values_that_the_official_configurations_have():
    eps = {name: row.shape.get("rms_norm_eps", 1e-6) for name, row in ROWS.items()}
    for name in (
        "llama2-7b-pure",
        "vicuna-v15-13b",
        "llama3-8b-instruct",
        "mistral-v0.1-7b-pure",
        "llama3.2-1b-instruct",
    ):
        assert eps[name] == 1e-5, name
    for name in ("qwen2-7b-instruct", "gemma-2b-instruct", "qwen3-0.6b"):
        assert eps[name] == 1e-6, name
    assert ROWS["phi-3-instruct-4b"].shape["sliding_window"] == 2047
    assert ROWS["mistral-v0.2-7b-instruct"].shape["sliding_window"] is None


# --- bad weights ---


def _saved(tokenizer, tmp_path, **changes):
    official("LlamaForCausalLM", tokenizer, **changes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path / "model.safetensors"


def test_truncated_weights(tokenizer, tmp_path):
    file = _saved(tokenizer, tmp_path)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot load the weights of"):
        build_llm(str(tmp_path), pretrained=True)


def test_weights_of_another_architecture_or_vocabulary(tokenizer, tmp_path):
    file = _saved(tokenizer, tmp_path)
    weights = load_file(file)
    save_file({k.replace("up_proj", "w3"): v for k, v in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"2 are missing or of another shape, for example model\.layers\.0\.mlp\.up_proj"
    ):
        build_llm(str(tmp_path), pretrained=True)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:-8].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="are not those of"):
        build_llm(str(tmp_path), pretrained=True)


def test_a_pickle_with_code(tokenizer, tmp_path):
    from tests.models import hostile

    file = _saved(tokenizer, tmp_path)
    file.unlink()
    hostile.write("nested in a module's state", tmp_path / "pytorch_model.bin", tmp_path / "ran")
    with pytest.raises(ValueError, match="cannot load the weights of"):
        build_llm(str(tmp_path), pretrained=True)
    assert not (tmp_path / "ran").exists()
