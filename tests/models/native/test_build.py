"""Building native VLMs: sizes and counts, stages, random weights, definitions, contradictions, foreign checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prismatic.data.pack import collate
from prismatic.models.native.build import NativeSource, build_native
from prismatic.models.native.llava import FastVision
from prismatic.models.native.parts import Checkpoint
from prismatic.models.native.qwen2_vl import QwenVision, default_size
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Example, ImageSpec


def _example(vlm, counts: tuple[int, ...], seed: int = 0) -> Example:
    R = vlm.vision_backbone.image_spec.resolution
    frames = np.random.default_rng(seed).integers(0, 256, (sum(counts), 3, R, R), dtype=np.uint8)
    visual = [VISUAL_SLOT] * sum(map(vlm.tokens_per_clip, counts))
    ids = torch.tensor([5, *visual, 6, 7, 8])
    labels = torch.where(ids == VISUAL_SLOT, IGNORE_INDEX, ids)
    return Example("", ids, labels, torch.from_numpy(frames), counts)


@pytest.mark.parametrize("counts", [(1,), (3,), (4, 1), ()])
def test_what_a_stage_trains_gets_gradients_from_any_batch(native_family: str, counts, native) -> None:
    """Also from a batch without images, or without videos: ranks that see different batches reduce the same weights."""
    vlm = native(native_family)
    stages = {"align": ["projector"], "finetune": ["projector", "llm_backbone"]}
    stages["full-finetune"] = ["vision_backbone", "projector", "llm_backbone"]
    for stage, modules in stages.items():
        vlm.freeze(stage)
        assert vlm.trainable_modules() == modules
        vlm.zero_grad()
        vlm(collate([_example(vlm, counts)], pad_token_id=0, packing=False)).loss_sum.backward()
        without = [n for n, p in vlm.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
        assert all(p.grad is None for p in vlm.parameters() if not p.requires_grad)
    assert vlm.fsdp_units()[0] is vlm.vision_backbone and len(vlm.fsdp_units()) == 3


def test_every_weight_of_the_checkpoint_is_in_one_module(native_family: str, native, folder) -> None:
    from safetensors.torch import load_file

    vlm = native(native_family)
    ours = vlm.state_dict()
    theirs = load_file(folder(native_family) / "model.safetensors")
    count = sum(t.numel() for t in theirs.values() if t.dtype == torch.float32)
    assert sum(t.numel() for t in ours.values() if t.dtype == torch.float32) == count
    assert {key.split(".")[0] for key in ours} == {"vision_backbone", "projector", "llm_backbone"}


def test_random_weights_and_a_definition_build_the_same_model(native_family: str, folder, tmp_path: Path) -> None:
    source = NativeSource(str(folder(native_family)), pretrained=False, seed=3)
    one, two = build_native(source, num_frames=2), build_native(source, num_frames=2)
    assert all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    one.llm_backbone.save_definition(tmp_path)
    gone = NativeSource("a/model-that-is-nowhere", pretrained=False, definition=tmp_path, seed=3)
    again = build_native(gone, num_frames=2)
    again.load_state_dict(one.state_dict())
    assert again.template == one.template and again.tokens_per_clip(2) == one.tokens_per_clip(2)
    assert again.vision_backbone.image_spec == one.vision_backbone.image_spec


def test_sizes_of_published_qwen2_vl() -> None:
    """8 frames at 224 are 256 tokens; by default R is what the published video processor leaves as it is."""
    vision = SimpleNamespace(patch_size=14, spatial_merge_size=2, temporal_patch_size=2)
    at_224 = QwenVision(torch.nn.Module(), vision, ImageSpec(224))
    assert (at_224.num_tokens(8), at_224.num_tokens(7), at_224.num_tokens(1)) == (256, 256, 64)
    images = SimpleNamespace(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280})
    videos = SimpleNamespace(size={"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768})
    processor = SimpleNamespace(image_processor=images, video_processor=videos)
    assert default_size(Checkpoint(None, processor, None), 28) == 336


def test_sizes_of_published_fastvlm() -> None:
    tower = torch.nn.Module()
    counts = {R: FastVision(tower, ImageSpec(R), 64).num_tokens(1) for R in (256, 512, 768, 1024, 1536)}
    assert counts == {256: 16, 512: 64, 768: 144, 1024: 256, 1536: 576}


def test_bf16_keeps_frequencies_and_answers(native_family: str, native) -> None:
    vlm = native(native_family)
    before = {n: b.clone() for n, b in vlm.named_buffers() if "inv_freq" in n}
    vlm.to(torch.device("cpu"), dtype=torch.bfloat16)
    after = dict(vlm.named_buffers())
    assert before and all(after[name].equal(buffer) for name, buffer in before.items())
    R = vlm.vision_backbone.image_spec.resolution
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", "What happens?")
    assert isinstance(vlm.generate(np.zeros((4, R, R, 3), np.uint8), builder.get_prompt(), max_new_tokens=2), str)


@pytest.mark.parametrize(("kind", "size", "tokens"), [("qwen2_vl", 84, 9), ("llava_onevision", 48, 51)])
def test_image_size(kind: str, size: int, tokens: int, native) -> None:
    """A size of the user's own, beyond the processor's bounds too; the processor agrees (checked while building)."""
    vlm = native(kind, image_size=size)
    assert vlm.vision_backbone.image_spec.resolution == size
    assert vlm.tokens_per_clip(1) == tokens
    frames = torch.zeros(5, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        assert len(vlm.encode(frames, (4, 1))) == vlm.tokens_per_clip(4) + vlm.tokens_per_clip(1)


def test_a_fixed_tower_refuses_another_size(native) -> None:
    with pytest.raises(ValueError, match=r"--model\.image_size 64.*32 pixels"):
        native("llava", image_size=64)
    with pytest.raises(ValueError, match=r"multiple of 28.*--model\.image_size 56"):
        native("qwen2_vl", image_size=57)


def test_resize_strategy_and_template_can_be_chosen(native) -> None:
    assert native("llava").resize_strategy == "resize-crop"
    vlm = native("llava", resize_strategy="letterbox", template_id="vicuna-v15")
    assert vlm.resize_strategy == "letterbox"
    builder = vlm.get_prompt_builder()
    said = builder.add_turn(role="human", message="<image>\nWhat?")
    assert said.startswith("A chat between") and "USER: <image>\nWhat? ASSISTANT:" in said


def test_a_processor_that_contradicts_the_model_is_refused(folder, tmp_path: Path) -> None:
    copy = shutil.copytree(folder("llava"), tmp_path / "llava")
    path = copy / "processor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "patch_size": 4}))
    with pytest.raises(ValueError, match=r"makes 16 visual tokens of 1 frame.*reserves 64"):
        build_native(NativeSource(str(copy)), num_frames=2)
    path.write_text(json.dumps({**config, "patch_size": None}))
    with pytest.raises(ValueError, match="cannot prepare an image"):
        build_native(NativeSource(str(copy)), num_frames=2)


def test_foreign_or_broken_folders_are_refused(folder, tmp_path: Path) -> None:
    copy = shutil.copytree(folder("llava"), tmp_path / "llava")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"--model\.model_path.*cannot load the weights"):
        build_native(NativeSource(str(copy)), num_frames=2)
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"] = {"model_type": "pixtral", "hidden_size": 24, "num_hidden_layers": 1}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="vision tower 'pixtral'"):
        build_native(NativeSource(str(copy), pretrained=False), num_frames=2)
    for path in copy.glob("*processor*"):
        path.unlink()
    with pytest.raises(ValueError, match="processor"):
        build_native(NativeSource(str(copy), pretrained=False), num_frames=2)
    with pytest.raises(ValueError, match="random weights need its configuration here"):
        build_native(NativeSource("some/model", pretrained=False), num_frames=2)
    with pytest.raises(ValueError, match="check the path or name"):
        build_native(NativeSource("some/model"), num_frames=2)
