"""Weights under their publishers' names, loaded through us, give the features of the publishers' own classes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prismatic.models.vision.zoo import build_vision
from tests.models.vision import official

PUBLISHERS = {f.__name__: f for f in (official.clip, official.siglip, official.dinov2, official.dinov3)}
FRAMES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_features_are_those_of_the_official_class(publisher, tmp_path):
    model, state, architecture, options = PUBLISHERS[publisher]()
    official.write_timm_folder(tmp_path, state, architecture, options)
    vision = build_vision(f"timm:local-dir:{tmp_path}", pretrained=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    with torch.no_grad():
        expected = model((FRAMES / 255 - mean) / std, output_hidden_states=True).hidden_states[-2]
        ours = vision(FRAMES)
    prefix = expected.shape[1] - 16  # class and register tokens
    assert ours.shape == (2, 16, 24) and prefix in (0, 1, 5)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, expected[:, prefix:], atol=1e-4, rtol=0)
    without = build_vision(f"video-timm:local-dir:{tmp_path}", pretrained=False).state_dict()
    assert {k: v.shape for k, v in vision.state_dict().items()} == {k: v.shape for k, v in without.items()}


def test_weights_of_another_architecture_are_refused(tmp_path):
    _, state, architecture, options = official.clip()
    cut = {k: v for k, v in state.items() if ".resblocks.1." not in k}
    official.write_timm_folder(tmp_path, cut, architecture, options)
    with pytest.raises(ValueError, match=r"cannot get the weights of vision backbone 'local-dir:.*blocks\.1\."):
        build_vision(f"timm:local-dir:{tmp_path}", pretrained=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["embed_dim"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot get the weights of vision backbone"):
        build_vision(f"timm:local-dir:{tmp_path}", pretrained=True)


def test_truncated_weights_and_folders_that_are_no_model(tmp_path):
    _, state, architecture, options = official.siglip()
    folder = official.write_timm_folder(tmp_path / "cut", state, architecture, options)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot get the weights of vision backbone"):
        build_vision(f"timm:local-dir:{folder}", pretrained=True)
    for content in (None, "{}", "no json"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match="is no model in timm's format"):
            build_vision(f"timm:local-dir:{tmp_path}", pretrained=True)


# --- FastViT-HD: the published depths, narrow ---

NARROW = {"layers": (2, 12, 24, 4, 2), "embed_dims": (8, 8, 16, 32, 64)}


def apple_key(key: str) -> str:
    """The published name of a timm parameter: the network is one flat list of stages, downsamplings and encodings."""
    match = re.match(r"stages\.(\d)\.(blocks|downsample|pos_emb)\.(.*)", key)
    if match:
        stage, part, rest = int(match[1]), match[2], match[3]
        index = {"blocks": (0, 2, 4, 7, 10), "downsample": (0, 1, 3, 5, 8), "pos_emb": (0, 0, 0, 6, 9)}[part][stage]
        key = f"network.{index}.{rest}"
        if part == "downsample":
            key = key.replace("proj.0.reparam_conv", "proj.0.lkb_reparam")
    key = key.replace("stem.", "patch_embed.").replace("final_conv", "conv_exp").replace(".mlp.", ".convffn.")
    return key.replace("se.fc1", "se.reduce").replace("se.fc2", "se.expand").replace(".gamma", "")


@pytest.fixture(scope="module")
def fast_vlm():
    """Transformers' FastVLM class with a narrow encoder of the published depth."""
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration

    args = {"inference_mode": True, **{k: list(v) for k, v in NARROW.items()}}
    vision = {
        **{"model_type": "timm_wrapper", "architecture": "fastvit_mci3", "do_pooling": True, "global_pool": "avg"},
        **{"hidden_size": 128, "model_args": args},
    }
    text = {
        **{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300},
    }
    config = FastVlmConfig(vision_config=vision, text_config=text, image_token_index=299)
    return official.lively(FastVlmForConditionalGeneration(config))


def _apple_folder(fast_vlm, folder: Path, shards: int) -> None:
    """Files as apple/FastVLM-* and llava-fastvithd_* have them."""
    prefix = "model.vision_tower.timm_model."
    state = {k.removeprefix(prefix): v for k, v in fast_vlm.state_dict().items() if k.startswith(prefix)}
    named = {f"model.vision_tower.vision_tower.model.{apple_key(k)}": v.contiguous() for k, v in state.items()}
    named["model.vision_tower.vision_tower.model.head.proj"] = torch.zeros(3, 3)
    named["model.embed_tokens.weight"] = torch.zeros(5, 5)
    folder.mkdir()
    for shard in range(shards):
        part = dict(list(named.items())[shard::shards])
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        save_file(part, folder / name)


def _row(monkeypatch) -> None:
    """Make the rows as narrow as the model above."""
    from dataclasses import replace

    from prismatic.models.vision.zoo import VISION

    for name, spec in VISION.items():
        if name.startswith("fastvit-hd"):
            monkeypatch.setitem(VISION._entries, name, replace(spec, kwargs=NARROW))


@pytest.mark.parametrize("layout", ["one file", "shards", "llava bin", "transformers"])
def test_fastvit_hd_under_its_published_names(layout, fast_vlm, tmp_path, monkeypatch):
    _row(monkeypatch)
    folder = tmp_path / "llava-fastvithd_0.5b_stage3"
    if layout == "transformers":
        fast_vlm.save_pretrained(folder)
    else:
        _apple_folder(fast_vlm, folder, 3 if layout == "shards" else 1)
    if layout == "llava bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    vision = build_vision(f"fastvit-hd-256px:{folder}", pretrained=True)
    frames = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    with torch.no_grad():
        expected = fast_vlm.model.vision_tower(frames / 255.0).last_hidden_state
        ours = vision(frames)
    assert ours.shape == (1, 16, 128) and ours.std() > 1e-3
    expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, expected, atol=1e-4 * float(expected.abs().max().clamp(min=1)), rtol=0)


def test_fastvit_hd_weights_that_are_not_there(tmp_path, monkeypatch):
    _row(monkeypatch)
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not hold the weights of FastViT-HD: (\d+) of \1 are missing"):
        build_vision(f"fastvit-hd-512px:{tmp_path}", pretrained=True)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="cannot be read"):
        build_vision(f"fastvit-hd-512px:{tmp_path}", pretrained=True)
    with pytest.raises(ValueError, match=r"'apple/FastVLM-0.5B'.*--model.pretrained_backbones false"):
        build_vision("fastvit-hd-512px", pretrained=True)
    with pytest.raises(ValueError, match="only FastViT-HD takes its weights from elsewhere"):
        build_vision("clip-vit-b:somewhere", pretrained=True)
