"""LLMs by id: every row's shape, random and local weights, tokenizers, vocabulary rows, RoPE scaling, bad input."""

from __future__ import annotations

import pytest
import torch

from prismatic.models.llm.build import _vocabulary_rows, build_llm
from prismatic.models.llm.zoo import LLMS, ROWS, llm_spec
from prismatic.prompting import TEMPLATES

TEXTS = ["A red circle moves to the left and stops.", "A small blue square splits in two."]
# id -> (D, layers), from the published registry
PUBLISHED = {
    "llama2-7b-pure": (4096, 32),
    "llama2-13b-pure": (5120, 40),
    "llama2-7b-chat": (4096, 32),
    "llama2-13b-chat": (5120, 40),
    "vicuna-v15-7b": (4096, 32),
    "vicuna-v15-13b": (5120, 40),
    "mistral-v0.1-7b-pure": (4096, 32),
    "mistral-v0.1-7b-instruct": (4096, 32),
    "mistral-v0.2-7b-instruct": (4096, 32),
    "phi-2-3b": (2560, 32),
    "llama3-8b-pure": (4096, 32),
    "llama3-8b-instruct": (4096, 32),
    "phi-3-instruct-4b": (3072, 32),
    "gemma-2b-instruct": (2048, 18),
    "gemma-8b-instruct": (3072, 28),
}


def tiny(**kwargs):
    return build_llm("tiny-llama", pretrained=False, **{"texts": lambda: TEXTS, "seed": 1, **kwargs})


@pytest.mark.parametrize("llm_id", ROWS)
def test_every_row_names_a_template_and_builds_from_its_shape(llm_id):
    spec = llm_spec(llm_id)
    assert spec.template is None or spec.template in TEMPLATES
    if spec.model_type is None:
        with pytest.raises(ValueError, match="random weights need its configuration here"):
            build_llm(llm_id, pretrained=False, texts=lambda: TEXTS)
        return
    with torch.device("meta"):
        llm = build_llm(llm_id, pretrained=False, texts=lambda: TEXTS)
    assert llm.template_id == spec.template
    assert len(llm.layers) == llm.llm.config.num_hidden_layers
    if llm_id in PUBLISHED:
        assert (llm.embed_dim, len(llm.layers)) == PUBLISHED[llm_id]
    assert llm.context_length >= 2048
    assert set(PUBLISHED) <= set(LLMS.names())


@pytest.mark.parametrize(
    ("llm_id", "tokens", "rows", "expected"),
    [
        ("llama2-7b-pure", 32001, 32000, 32064),
        ("vicuna-v15-13b", 32001, 32000, 32064),
        ("llama3-8b-instruct", 128257, 128256, 128320),
        ("phi-2-3b", 50296, 51200, 50304),  # downwards: the published rows fit the tokenizer
        ("qwen2-0.5b-instruct", 151646, 151936, 151936),  # its own padding token: left as published
        ("smollm2-135m-instruct", 49153, 49152, 49216),
    ],
)
def test_rows_of_the_vocabulary_are_those_of_published_checkpoints(llm_id, tokens, rows, expected):
    assert _vocabulary_rows(llm_spec(llm_id), tokens, rows) == expected


def test_random_weights_and_tokenizer_depend_on_seed_and_texts_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    one = tiny()
    torch.testing.assert_close(torch.rand(2), expected)
    two, other = tiny(texts=lambda: TEXTS[::-1]), tiny(seed=2)
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    a, b, c = (m.state_dict() for m in (one, two, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["llm.lm_head.weight"], c["llm.lm_head.weight"])
    assert a["llm.model.embed_tokens.weight"].shape[0] % 64 == 0
    assert len(one.tokenizer) <= a["llm.model.embed_tokens.weight"].shape[0] < len(one.tokenizer) + 64


def test_token_losses_are_transformers_own(make_llm, family):
    llm = make_llm(family)
    ids = torch.randint(3, 290, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        official = llm.llm(input_ids=ids, labels=ids).loss * ids[:, 1:].numel()
        places = torch.cat([torch.arange(11), 12 + torch.arange(11)])
        ours = llm.token_losses(llm.embed(ids), None, places, ids[:, 1:].flatten())
        logits = llm.llm(input_ids=ids).logits
    assert float(ours) == pytest.approx(float(official), rel=1e-5)
    assert logits.shape[:2] == (2, 12), "the hook must be gone after the call"


def test_bf16_keeps_rope_frequencies(make_llm):
    llm = make_llm("llama")
    before = llm.llm.model.rotary_emb.inv_freq.clone()
    llm.to(torch.bfloat16)
    assert llm.llm.lm_head.weight.dtype == torch.bfloat16
    torch.testing.assert_close(llm.llm.model.rotary_emb.inv_freq, before, rtol=0, atol=0)


def test_rope_scaling_stretches_the_context():
    plain, scaled = tiny(), tiny(rope_scaling_factor=3.0)
    assert (plain.context_length, scaled.context_length) == (2048, 3 * 2048)
    rope = scaled.llm.config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == (
        "dynamic",
        3.0,
        plain.llm.config.rope_parameters["rope_theta"],
    )
    ids = torch.arange(3, 40)[None]
    at = torch.arange(37)[None]
    with torch.no_grad():
        short = [m.llm(input_ids=ids, position_ids=at).logits for m in (plain, scaled)]
        long = [m.llm(input_ids=ids, position_ids=at * 100).logits for m in (plain, scaled)]
    torch.testing.assert_close(short[0], short[1])  # dynamic: nothing changes inside the original context
    assert (long[0] - long[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"--model.rope_scaling_factor must be at least 1, got 0.5"):
        tiny(rope_scaling_factor=0.5)


def test_a_definition_builds_the_same_model_without_texts(tmp_path):
    one = tiny(rope_scaling_factor=2.0)
    one.save_definition(tmp_path)
    two = build_llm("tiny-llama", pretrained=False, tokenizer=tmp_path, rope_scaling_factor=2.0, max_length=77)
    two.load_state_dict(one.state_dict(), strict=True)
    assert two.tokenizer.get_vocab() == one.tokenizer.get_vocab() and two.tokenizer.model_max_length == 77
    assert two.context_length == one.context_length
    ids = one.tokenizer("A red circle", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(one.llm(ids).logits, two.llm(ids).logits)


def test_a_local_folder_with_weights_or_only_a_configuration(tmp_path):
    source = tiny()
    source.llm.save_pretrained(tmp_path / "model")
    source.tokenizer.save_pretrained(tmp_path / "model")
    loaded = build_llm(str(tmp_path / "model"), pretrained=True)
    torch.testing.assert_close(loaded.llm.lm_head.weight, source.llm.lm_head.weight)
    assert (
        loaded.template_id is None
        and loaded.tokenizer.pad_token == "<PAD>"
        and loaded.tokenizer.padding_side == "right"
    )
    fresh = build_llm(str(tmp_path / "model"), pretrained=False, seed=9)
    assert fresh.llm.lm_head.weight.shape == source.llm.lm_head.weight.shape
    assert not torch.equal(fresh.llm.lm_head.weight, source.llm.lm_head.weight)
    source.llm.config.save_pretrained(tmp_path / "bare")
    bare = build_llm(str(tmp_path / "bare"), pretrained=False, texts=lambda: TEXTS)
    assert bare.llm.lm_head.weight.shape == source.llm.lm_head.weight.shape
    with pytest.raises(ValueError, match="cannot load the weights of"):
        (tmp_path / "bare" / "tokenizer.json").write_bytes((tmp_path / "model" / "tokenizer.json").read_bytes())
        (tmp_path / "bare" / "tokenizer_config.json").write_bytes(
            (tmp_path / "model" / "tokenizer_config.json").read_bytes()
        )
        build_llm(str(tmp_path / "bare"), pretrained=True)


def test_a_tokenizer_without_padding_gets_a_token_of_its_own(tmp_path):
    source = tiny()
    source.tokenizer.pad_token = source.tokenizer.eos_token  # as many publishers have it
    source.llm.save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    loaded = build_llm(str(tmp_path), pretrained=True)
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id
    assert loaded.tokenizer.pad_token_id < loaded.llm.get_input_embeddings().weight.shape[0]
    assert loaded.llm.config.pad_token_id == loaded.tokenizer.pad_token_id


def test_families_without_sdpa_fall_back_to_eager(tmp_path, make_llm):
    make_llm("gemma2").save_definition(tmp_path)
    llm = build_llm(str(tmp_path), pretrained=False)
    assert llm.llm.config._attn_implementation in ("eager", "sdpa")
    with pytest.raises(ValueError, match="nonsense"):
        build_llm(str(tmp_path), pretrained=False, attention="nonsense")


def test_remote_code_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}'
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nclass Config: pass\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_llm(str(tmp_path), pretrained=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("llm_id", "message"),
    [
        (
            "vicuna-v1.5-7b",
            "unknown LLM 'vicuna-v1.5-7b' for --model.llm_backbone_id; did you mean 'vicuna-v15-7b'.*hub name",
        ),
        ("./nowhere", "--model.llm_backbone_id ./nowhere: no such folder"),
        ("a/b/c", "unknown LLM 'a/b/c'"),
        ("some/model", "cannot load the configuration of 'some/model'.*--hf_token"),
        ("tiny-llama", "tiny-llama has no pretrained weights; pass --model.pretrained_backbones false"),
        ("qwen2-0.5b-instruct", "cannot load the configuration of 'Qwen/Qwen2-0.5B-Instruct'"),
    ],
)
def test_bad_ids(llm_id, message):
    with pytest.raises(ValueError, match=message):
        build_llm(llm_id, pretrained=True)


def test_folder_without_a_model_and_missing_texts(tmp_path):
    with pytest.raises(ValueError, match=r"the folder has no config.json"):
        build_llm(str(tmp_path), pretrained=True)
    with pytest.raises(ValueError, match="tiny-llama has no tokenizer here; name one, or give texts"):
        tiny(texts=None)


@pytest.mark.parametrize(
    ("llm_id", "template"),
    [
        *[(name, "pure") for name in ("llama2-7b-pure", "llama3-8b-pure", "gemma-2b-instruct", "gemma-8b-instruct")],
        ("llama2-7b-chat", "llama2-chat-compat"),
        ("llama3-8b-instruct", "llama3-instruct-compat"),
        ("phi-3-instruct-4b", "phi-3-compat"),
        ("phi-3-mini-instruct", "phi-3"),
        ("gemma-2b-it", "gemma-instruct"),
        ("gemma-7b-it", "gemma-instruct"),
    ],
)
def test_older_ids_keep_the_prompts_that_they_were_trained_on(llm_id, template):
    assert llm_spec(llm_id).template == template
