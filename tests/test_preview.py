"""`--dry_run true`: everything that a user wants to know first, also for a 7B model whose files are not here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from prismatic.conf.data import DatasetConfig
from prismatic.conf.models import ModelConfig
from prismatic.conf.run import PretrainConfig
from prismatic.preview import describe


def _chat(placeholder: str, answer: str = "A red circle.") -> list[dict[str, str]]:
    return [{"from": "human", "value": f"{placeholder}What is it?"}, {"from": "gpt", "value": answer}]


@pytest.fixture
def cfg(tmp_path: Path) -> PretrainConfig:
    """Two images, a video and a text for one-stage+7b."""
    rows = [
        {"id": "0", "image": "a.png", "conversations": _chat("<image>\n")},
        {"id": "1", "image": "b.png", "conversations": _chat("<image>\n", "A blue square, seen from above.")},
        {"id": "2", "video": "a.mp4", "conversations": _chat("<video>\n")},
        {"id": "3", "conversations": _chat("")},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    data = DatasetConfig.get_choice_class("custom")(
        dataset_root_dir=tmp_path, finetune_stage_components=(Path("a.json"), Path("."))
    )
    model = ModelConfig.get_choice_class("one-stage+7b")(num_frames=8)
    return PretrainConfig(model=model, dataset=data, hf_token="", run_root_dir=tmp_path / "runs")


def _line(text: str, begin: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(begin))


def test_a_seven_billion_preset_without_any_file_of_it(cfg):
    text = describe(cfg)
    assert _line(text, "llm_backbone").split()[1:] == ["6,738,939,904", "6,738,939,904", "0"]  # 32064 rows
    assert _line(text, "vision_backbone").split()[1:] == ["303,507,456", "0", "303,507,456"]
    assert _line(text, "image").split()[:4] == ["image", "2", "1.0", "576.0"]
    assert _line(text, "video ").split()[:4] == ["video", "1", "8.0", "4608.0"]
    assert _line(text, "text only").split()[2:5] == ["1", "0.0", "0.0"]
    assert re.search(r"too long +\d+ tokens exceed the context: .*--model.rope_scaling_factor 1.2", text)
    assert "estimated: text tokens and the 32064 rows" in text and "llm_backbone_id: vicuna-v15-7b" in text
    flops = float(_line(text, "a step").split()[3].replace(",", ""))
    memory = float(_line(text, "memory").split()[2].replace(",", ""))
    # 128 examples of 1440 + ~ 180 tokens, 8 FLOPs a weight and token, and a forward pass of the tower.
    assert 8_000 < flops < 20_000 and 100 < memory < 200


def test_align_trains_the_projector_alone(cfg):
    cfg.stage = "align"
    cfg.dataset.align_stage_components = cfg.dataset.finetune_stage_components
    text = describe(cfg)
    assert _line(text, "llm_backbone").split()[2] == "0"
    assert _line(text, "projector").split()[2] == "20,979,712"
    memory = _line(text, "memory").split()[2]
    assert float(memory.replace(",", "")) < 90


def test_what_training_would_refuse(cfg):
    with pytest.raises(ValueError, match="did you mean 'vicuna-v15-7b'"):
        describe(replace(cfg, model=replace(cfg.model, llm_backbone_id="vicuna-v1.5-7b")))
    with pytest.raises(ValueError, match="unknown vision backbone"):
        describe(replace(cfg, model=replace(cfg.model, vision_backbone_id="clip-vit-l-366px")))
    with pytest.raises(ValueError, match="cannot load the configuration of 'some/model'"):
        describe(replace(cfg, model=replace(cfg.model, llm_backbone_id="some/model")))


def test_many_processes_share_the_weights(cfg, monkeypatch):
    alone = describe(cfg)
    monkeypatch.setenv("WORLD_SIZE", "8")
    shared = describe(cfg)
    first, second = (float(re.search(r"([\d.,]+) GiB +weights", text)[1].replace(",", "")) for text in (alone, shared))
    assert first == pytest.approx(8 * second, rel=0.02) and "over 8 process(es)" in shared
