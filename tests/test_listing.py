"""Every table has every id, with its sizes."""

from __future__ import annotations

import pytest

from prismatic.listing import KINDS, short, text_of
from prismatic.models.facts import count_parameters, llm_facts, vision_facts

# Weights as the publishers count them.
LLM_SIZES = {
    "llama2-7b-pure": 6_738_415_616,
    "mistral-v0.1-7b-pure": 7_241_732_096,
    "phi-2-3b": 2_779_683_840,
    "llama3-8b-instruct": 8_030_261_248,
    "phi-3-instruct-4b": 3_821_079_552,
    "gemma-2b-instruct": 2_506_172_416,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "smollm2-135m-instruct": 134_515_008,
    "llama3.2-1b-instruct": 1_235_814_400,
    "gemma2-2b-instruct": 2_614_341_888,
    "gemma3-1b-instruct": 999_885_952,
}


@pytest.mark.parametrize(("llm_id", "size"), LLM_SIZES.items())
def test_llm_sizes_are_the_published_ones(llm_id, size):
    assert llm_facts(llm_id).parameters == size


def test_two_layers_tell_the_size_of_all():
    from prismatic.models.llm.build import build_llm
    from prismatic.models.llm.zoo import llm_spec

    llm = build_llm("tiny-llama", pretrained=False, texts=lambda: ["a"])
    rows = llm.llm.config.vocab_size
    facts = llm_facts("tiny-llama")
    default = type(llm.llm.config)().vocab_size
    assert facts.parameters == count_parameters(llm.llm) + 2 * (default - rows) * facts.width
    assert facts.layers == llm_spec("tiny-llama").shape["num_hidden_layers"]


def test_vision_facts():
    facts = vision_facts("video-dinosiglip-vit-so-224px")
    assert (facts.width, facts.patches, facts.resolution) == (2176, 256, 224)
    assert facts.source == "timm vit_large_patch14_reg4_dinov2.lvd142m + timm vit_so400m_patch14_siglip_224.webli"
    assert vision_facts("fastvit-hd-1024px").source == "apple/FastVLM-0.5B"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("vision", "model")])
def test_tables(kind):
    header, rows = KINDS[kind]()
    assert rows and all(len(row) == len(header) for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
    lines = text_of((header, rows)).splitlines()
    assert len(lines) == len(rows) + 2 and all(cell for row in rows for cell in row[:2])


def test_table_of_models_and_backbones(monkeypatch):
    from prismatic.models.facts import VisionFacts

    monkeypatch.setattr("prismatic.models.facts.vision_facts", lambda name: VisionFacts(8, 4, 16, 1000, "somewhere"))
    header, rows = KINDS["model"]()
    row = dict(zip(header, next(row for row in rows if row[0] == "one-stage+7b"), strict=True))
    assert (row["width"], row["tokens a frame"], row["parameters"]) == ("4096", "4", "6.74B")
    assert row["trained"] == "TRI-ML/prismatic-vlms" and dict(zip(header, rows[-1], strict=True))["trained"] == "-"
    header, rows = KINDS["vision"]()
    assert header[2:5] == ["width", "tokens a frame", "parameters"] and rows[0][1:] == [
        "16",
        "8",
        "4",
        "1k",
        "somewhere",
    ]


@pytest.mark.parametrize(("count", "text"), [(None, "-"), (12, "12"), (999_885_952, "1B"), (6_738_415_616, "6.74B")])
def test_short_numbers(count, text):
    assert short(count) == text
