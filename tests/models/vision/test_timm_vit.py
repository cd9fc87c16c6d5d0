"""Features against timm's own: second-to-last block, no prefix tokens, no final norm; normalisation; dead weights."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from prismatic.models.vision.base import normalise
from prismatic.models.vision.timm_vit import CustomViTSpec, TimmViT, ViTSpec
from prismatic.types import ImageSpec

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}


def frames(R: int, F: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (F, 3, R, R), dtype=torch.uint8)


def pixels(x: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    return (x / 255.0 - mean) / std


@pytest.mark.parametrize(
    "extra", [{}, {"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}, {"pre_norm": True}]
)
def test_features_are_timms_second_to_last_layer(extra):
    vision = CustomViTSpec(32, {"patch_size": 8, **SMALL, **extra}).build(pretrained=False, seed=0)
    x = frames(32)
    with torch.no_grad():
        ours = vision(x)
        timms = vision.featurizer.get_intermediate_layers(pixels(x, vision.image_spec), n={1})[0]
    assert ours.shape == (3, 16, 24)
    torch.testing.assert_close(ours, timms)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_small_patch16_dinov3", {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 64}),
        ("naflexvit_base_patch16_siglip", {"depth": 3, "embed_dim": 24, "num_heads": 2}),
        ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}),
    ],
)
def test_eva_naflex_and_registers_against_a_hook_on_the_block(name, kwargs):
    model = timm.create_model(name, pretrained=False, num_classes=0, **kwargs).eval()
    R = kwargs.get("img_size", 64)
    vision, seen = TimmViT(model, ImageSpec(R)), []
    model.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    calls = []
    model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        ours = vision(frames(R))
    torch.testing.assert_close(ours, seen[0][:, model.num_prefix_tokens :])
    assert ours.shape == (3, vision.num_patches, 24)
    assert not calls, "the last block is never used and must not be computed"


def test_normalised_pixels_equal_timms_transform():
    spec = ViTSpec("vit_large_patch14_clip_quickgelu_336.openai", image_size=32).image_spec()
    transform = timm.data.create_transform((3, 32, 32), mean=spec.mean, std=spec.std, crop_pct=1.0)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ours = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None], spec)
    torch.testing.assert_close(ours[0], transform(Image.fromarray(picture)), atol=1e-6, rtol=0)


def test_bf16_rounds_the_features_not_the_pixels():
    vision = (
        CustomViTSpec(16, {"patch_size": 16, **SMALL, "depth": 1}).build(pretrained=False, seed=0).to(torch.bfloat16)
    )
    assert vision(frames(16)).dtype == torch.bfloat16
    x = torch.arange(256, dtype=torch.uint8).repeat(3)[: 3 * 16 * 16].view(1, 3, 16, 16)
    assert len(normalise(x, vision.image_spec)[0, 0].unique()) == 256


def test_gradients_reach_the_used_parameters_only():
    vision = CustomViTSpec(32, {"patch_size": 8, **SMALL}).build(pretrained=False, seed=0)
    vision(frames(32)).square().sum().backward()
    used = {id(p) for p in vision.used_parameters()}
    for name, parameter in vision.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in used), name
    assert len(used) < len(list(vision.parameters()))


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(1, 3, 32, 32),
        torch.zeros(1, 3, 30, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
    ],
)
def test_wrong_frames_are_refused(bad):
    vision = CustomViTSpec(32, {"patch_size": 8, **SMALL}).build(pretrained=False, seed=0)
    with pytest.raises(ValueError, match=r"frames must be uint8 \[F, 3, 32, 32\], got"):
        vision(bad)


def test_stays_in_eval_mode():
    vision = (
        CustomViTSpec(32, {"patch_size": 8, **SMALL, "proj_drop_rate": 0.5}).build(pretrained=False, seed=0).train()
    )
    x = frames(32)
    torch.testing.assert_close(vision(x), vision(x))
