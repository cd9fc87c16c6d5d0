"""Every preset is what its id says, and survives a round trip through its file form."""

from __future__ import annotations

import draccus
import pytest

from prismatic.conf.models import NATIVE_MODEL_ID, ModelConfig
from prismatic.conf.presets import PRESETS

FAMILIES = {
    "dinosiglip": "dinosiglip",
    "dinoclip": "dinoclip",
    "siglip": "siglip",
    "clip": "clip",
    "dinov2": "dinov2",
    "in1k": "in1k",
}
LLM_FAMILIES = ("gemma", "llama2", "llama3", "mistral", "phi-2", "phi-3")
IDS = [row[0] for row in PRESETS]


def test_sixty_four_older_presets_and_ours() -> None:
    assert len(IDS) == len(set(IDS)) == 66
    assert set(IDS) == set(ModelConfig.get_known_choices())


@pytest.mark.parametrize("model_id", IDS)
def test_preset_is_what_its_id_says(model_id: str) -> None:
    cfg = ModelConfig.get_choice_class(model_id)()
    assert cfg.model_id == model_id
    vision = next((family for word, family in FAMILIES.items() if word in model_id), None)
    if vision:
        assert cfg.vision_backbone_id.startswith(vision)
    llm = next((family for family in LLM_FAMILIES if model_id.startswith(family)), None)
    if llm:
        assert cfg.llm_backbone_id.startswith(llm)
    for size in ("2b", "7b", "8b", "13b"):
        if f"+{size}" in model_id:
            assert size in cfg.llm_backbone_id
    if "224px" in model_id:
        assert "336" not in cfg.vision_backbone_id and "384" not in cfg.vision_backbone_id
    if model_id == NATIVE_MODEL_ID:
        cfg.model_path = "some/model"
    cfg.validate("finetune", world_size=1)
    assert draccus.decode(ModelConfig, draccus.encode(cfg, ModelConfig)) == cfg


def test_no_preset_is_another_under_a_new_name() -> None:
    """Presets of one composition differ in data or schedule by design; those that name a backbone must differ in it."""
    seen: dict[tuple[str, ...], str] = {}
    for model_id in IDS:
        cfg = ModelConfig.get_choice_class(model_id)()
        named = any(word in model_id for word in FAMILIES) or model_id.startswith(LLM_FAMILIES)
        same_by_design = ("no-cotraining", "controlled", "clip-336px", "prism-")
        if not named or any(word in model_id for word in same_by_design):
            continue
        key = (cfg.vision_backbone_id, cfg.llm_backbone_id, cfg.arch_specifier, cfg.image_resize_strategy)
        assert key not in seen, f"{model_id} builds the same model as {seen.get(key)}"
        seen[key] = model_id


@pytest.mark.parametrize(
    ("model_id", "values", "said"),
    [
        (NATIVE_MODEL_ID, {}, "--model.model_path"),
        (NATIVE_MODEL_ID, {"model_path": "x", "frame_aggregator": "mean"}, "--model.frame_aggregator"),
        (NATIVE_MODEL_ID, {"model_path": "x", "llm_backbone_id": "phi-2-3b"}, "--model.llm_backbone_id"),
        (NATIVE_MODEL_ID, {"model_path": "x", "visual_token_layout": "after-bos"}, "--model.visual_token_layout"),
        (NATIVE_MODEL_ID, {"model_path": "x", "image_size": 0}, "--model.image_size"),
        ("tiny-video", {"model_path": "x"}, "--model.model_path"),
        ("tiny-video", {"image_size": 224}, "--model.image_size"),
    ],
)
def test_flags_of_composed_and_native_models_do_not_mix(model_id: str, values: dict[str, object], said: str) -> None:
    cfg = ModelConfig.get_choice_class(model_id)(**values)
    with pytest.raises(ValueError, match=said):
        cfg.validate("finetune", world_size=1)
