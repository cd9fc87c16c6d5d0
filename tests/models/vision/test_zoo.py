"""Every vision id: builds (on meta), reports its sizes, resolves in all spellings; bad ids."""

from __future__ import annotations

import pytest
import torch

from prismatic.models.vision.zoo import ROWS, VISION, build_vision, vision_spec

# id -> (P, Dv, R), from the published registry
PUBLISHED = {
    "clip-vit-b": (196, 768, 224),
    "clip-vit-l": (256, 1024, 224),
    "clip-vit-l-336px": (576, 1024, 336),
    "siglip-vit-b16-224px": (196, 768, 224),
    "siglip-vit-b16-256px": (256, 768, 256),
    "siglip-vit-b16-384px": (576, 768, 384),
    "siglip-vit-so400m": (256, 1152, 224),
    "siglip-vit-so400m-384px": (729, 1152, 384),
    "dinov2-vit-l": (256, 1024, 224),
    "in1k-vit-l": (196, 1024, 224),
    "dinoclip-vit-l-336px": (576, 2048, 336),
    "dinosiglip-vit-so-224px": (256, 2176, 224),
    "dinosiglip-vit-so-384px": (729, 2176, 384),
    "fastvit-hd-512px": (64, 3072, 512),
    "fastvit-hd-768px": (144, 3072, 768),
    "fastvit-hd-1024px": (256, 3072, 1024),
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize("vision_id", ROWS)
def test_every_id_builds_and_reports_its_sizes(vision_id):
    with torch.device("meta"):
        vision = build_vision(vision_id, pretrained=False)
    side = int(vision.num_patches**0.5)
    assert side * side == vision.num_patches and vision.embed_dim > 0
    if vision_id in PUBLISHED:
        assert (vision.num_patches, vision.embed_dim, vision.image_spec.resolution) == PUBLISHED[vision_id]
    if not vision_id.startswith("tiny"):
        frames = torch.zeros(2, 3, *[vision.image_spec.resolution] * 2, dtype=torch.uint8, device="meta")
        assert vision(frames).shape == (2, vision.num_patches, vision.embed_dim)
    assert sum(1 for _ in vision.used_parameters()) <= len(list(vision.parameters()))


def test_pixels_of_published_backbones():
    specs = {
        name: vision_spec(name).image_spec() for name in ("clip-vit-b", "clip-vit-l-336px", "siglip-vit-so400m-384px")
    }
    assert specs["clip-vit-b"].crop_pct == 0.9 and specs["clip-vit-l-336px"].crop_pct == 1.0
    assert specs["clip-vit-l-336px"].mean == CLIP_MEAN
    assert specs["siglip-vit-so400m-384px"].mean == (0.5, 0.5, 0.5)
    assert all(spec.interpolation == "bicubic" for spec in specs.values())
    for name in ("siglip-vit-b16-224px", "in1k-vit-l", "siglip2-vit-b16-224px", "dinov2-vit-l"):
        assert vision_spec(name).image_spec().crop_pct == 1.0
    with torch.device("meta"):
        hd = build_vision("fastvit-hd-512px", pretrained=False).image_spec
    assert (hd.mean, hd.std) == ((0.0,) * 3, (1.0,) * 3)


def test_weights_are_the_ones_named():
    from timm.models import get_pretrained_cfg

    for name, row in ROWS.items():
        if hasattr(row, "timm_name"):
            assert "." in row.timm_name, f"{name}: without a tag timm may take other weights in its next release"
            assert get_pretrained_cfg(row.timm_name) is not None
    with torch.device("meta"):
        act = build_vision("clip-vit-l", pretrained=False).featurizer.blocks[0].mlp.act
    assert type(act).__name__ == "QuickGELU"


def test_video_alias_is_the_same_row_and_changes_nothing():
    before = VISION.names()
    for name in before:
        assert vision_spec(f"video-{name}") is vision_spec(name)
    assert VISION.names() == before


def test_any_timm_vit_is_an_id():
    for name in ("timm:test_vit", "test_vit", "video-test_vit", "timm:test_vit.r160_in1k"):
        vision = build_vision(name, pretrained=False)
        assert (vision.num_patches, vision.embed_dim) == (100, 64)
    assert build_vision("timm:vit_tiny_patch16_224", pretrained=False).image_spec.resolution == 224


@pytest.mark.parametrize(
    ("vision_id", "message"),
    [
        (
            "clip-vit-l-366px",
            "unknown vision backbone 'clip-vit-l-366px' for --model.vision_backbone_id; .*'clip-vit-l-336px'",
        ),
        ("video-tiny-vti", "did you mean 'tiny-vit'"),
        ("timm:vit_base_patch16_clip_quickgelu_242", "did you mean .*vit_base_patch16_clip_quickgelu_224"),
        ("resnet50_", "unknown vision backbone 'resnet50_'"),
    ],
)
def test_unknown_ids_get_suggestions(vision_id, message):
    with pytest.raises(ValueError, match=message):
        build_vision(vision_id, pretrained=False)


def test_models_that_are_no_vit_are_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="'test_convnext' is not a vision transformer"):
        build_vision("test_convnext", pretrained=False)


def test_weights_that_cannot_be_had():
    with pytest.raises(ValueError, match=r"'test_vit.r160_in1k'.*--model.pretrained_backbones false"):
        build_vision("timm:test_vit.r160_in1k", pretrained=True)
    with pytest.raises(
        ValueError,
        match=r"--model.vision_backbone_id tiny-vit has no pretrained weights; pass --model.pretrained_backbones false",
    ):
        build_vision("tiny-vit", pretrained=True)


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = build_vision("tiny-vit", pretrained=False, seed=4).state_dict()
    torch.testing.assert_close(torch.rand(3), expected)
    torch.rand(7)
    two, other = (build_vision("tiny-vit", pretrained=False, seed=s).state_dict() for s in (4, 5))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["featurizer.patch_embed.proj.weight"], other["featurizer.patch_embed.proj.weight"])
