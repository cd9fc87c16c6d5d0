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
PUBLISHED = [model_id for model_id in IDS if model_id not in ("tiny-video", NATIVE_MODEL_ID)]


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


# Published runs that share a composition: they differ in data, in schedule, or in the stage that they are trained with.
SHARED = [
    {"reproduction-llava-v15+7b", "full-ft-multi-stage+7b"},
    {
        *("one-stage+7b", "full-ft-one-stage+7b", "vicuna-no-cotraining+7b", "train-1.25-epochs+7b"),
        *("train-1.5-epochs+7b", "train-2-epochs+7b", "train-3-epochs+7b"),
        *("llava-lvis4v+7b", "llava-lrv+7b", "llava-lvis4v-lrv+7b"),
    },
    {"llama2+7b", "llama2-no-cotraining+7b"},
    *({f"prism-{v}-controlled+{n}", f"prism-{v}+{n}"} for v in ("clip", "siglip", "dinosiglip") for n in ("7b", "13b")),
    {"prism-dinosiglip-224px-controlled+7b", "prism-dinosiglip-224px+7b"},
]


def test_no_preset_is_another_under_a_new_name() -> None:
    seen: dict[tuple[str, ...], set[str]] = {}
    for model_id in IDS:
        cfg = ModelConfig.get_choice_class(model_id)()
        key = (cfg.vision_backbone_id, cfg.llm_backbone_id, cfg.arch_specifier, cfg.image_resize_strategy)
        seen.setdefault(key, set()).add(model_id)
    shared = [ids for ids in seen.values() if len(ids) > 1]
    assert sorted(map(sorted, shared)) == sorted(map(sorted, SHARED))


@pytest.mark.parametrize("model_id", [*PUBLISHED, "tiny-video"])
def test_every_id_of_a_preset_resolves(model_id: str) -> None:
    from prismatic.models.llm.zoo import LLMS
    from prismatic.models.projectors import PROJECTORS
    from prismatic.models.vision.zoo import vision_spec
    from prismatic.video.transforms import RESIZES

    cfg = ModelConfig.get_choice_class(model_id)()
    assert vision_spec(cfg.vision_backbone_id) is not None
    assert cfg.llm_backbone_id in LLMS and cfg.projector_id in PROJECTORS and cfg.image_resize_strategy in RESIZES
    fused = cfg.vision_backbone_id.startswith("dino") and cfg.vision_backbone_id != "dinov2-vit-l"
    assert fused or cfg.projector_id != "fused-gelu-mlp"


def test_hyperparameters_of_the_published_runs() -> None:
    for model_id in PUBLISHED:
        cfg = ModelConfig.get_choice_class(model_id)()
        align, finetune = cfg.stage("align"), cfg.stage("finetune")
        assert (align.global_batch_size, align.learning_rate, align.weight_decay) == (256, 1e-3, 0.0)
        assert (finetune.global_batch_size, finetune.learning_rate, finetune.weight_decay) == (128, 2e-5, 0.1)
        assert {align.warmup_ratio, finetune.warmup_ratio} == {0.03} and cfg.llm_max_length == 2048
        steps = {"train-1.25-epochs+7b": 6500, "train-1.5-epochs+7b": 7800}.get(model_id)
        assert finetune.max_steps == steps
        twice = model_id.startswith("prism-") and "controlled" not in model_id
        epochs = {"train-2-epochs+7b": 2, "train-3-epochs+7b": 3}.get(model_id, 2 if twice else 1)
        assert finetune.epochs == epochs and align.epochs == 1


@pytest.mark.parametrize("model_id", IDS)
def test_a_published_id_is_the_preset_of_that_name(model_id: str) -> None:
    """`load(id)` never fetches another id's run: the folder on the hub has the preset's own name."""
    from prismatic.conf.hub import HUB_MODELS

    if model_id in HUB_MODELS:
        assert HUB_MODELS.get(model_id).folder == model_id


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


def _model(preset: str = "one-stage+7b", **values):
    return ModelConfig.get_choice_class(preset)(**values)


def test_recomputing_by_the_newer_and_the_older_flag():
    assert _model().recompute == "full" and _model("tiny-video").recompute == "none"
    assert _model(enable_gradient_checkpointing=False).recompute == "none"
    for how in ("none", "full", "selective"):
        for preset in ("one-stage+7b", "tiny-video"):  # the latter says false by the older flag, and gives way
            config = _model(preset, activation_checkpointing=how)
            config.validate("finetune", 1)
            assert config.recompute == how
    assert _model("tiny-video", enable_gradient_checkpointing=True).recompute == "full"
    for preset, older, newer in (("one-stage+7b", False, "full"), ("tiny-video", True, "none")):
        with pytest.raises(ValueError, match=f"{newer} contradicts --model.enable_gradient_checkpointing"):
            _model(preset, enable_gradient_checkpointing=older, activation_checkpointing=newer).validate("finetune", 1)
    with pytest.raises(ValueError, match=r"--model.activation_checkpointing must be none, full, selective, got 'all'"):
        _model(activation_checkpointing="all").validate("finetune", 1)


def test_attention_by_known_names():
    with pytest.raises(ValueError, match=r"--model.attention must be auto, sdpa, flex, flash, varlen, got 'fast'"):
        _model(attention="fast").validate("finetune", 1)
