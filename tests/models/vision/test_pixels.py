"""Our uint8 pixels and the normalisation on the device equal each family's own preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from prismatic.models.vision.base import normalise
from prismatic.models.vision.fastvit_hd import FastViTHD, FastViTHDSpec
from prismatic.models.vision.zoo import ROWS, build_vision, vision_spec
from prismatic.types import ImageSpec
from prismatic.video.transforms import resize

PICTURES = [(97, 143), (224, 224), (301, 170)]
FAMILIES = [
    *("clip-vit-b", "clip-vit-l", "clip-vit-l-336px", "siglip-vit-b16-224px", "siglip-vit-b16-256px"),
    *("siglip-vit-so400m", "siglip-vit-so400m-384px", "dinov2-vit-l", "in1k-vit-l", "siglip2-vit-b16-224px"),
    *("siglip2-vit-so400m-378px", "siglip2-vit-so400m-naflex", "dinov3-vit-b"),
]
# The published runs gave these families another crop than timm does: the shortest side becomes R.
WHOLE = ("siglip", "in1k")


def picture(height: int, width: int) -> np.ndarray:
    """A picture with soft and hard edges."""
    numbers = np.random.default_rng(height)
    smooth = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    return np.clip(smooth + numbers.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)


def ours(pixels: np.ndarray, spec: ImageSpec, strategy: str) -> torch.Tensor:
    return normalise(resize(pixels[None], spec, strategy), spec)[0]


@pytest.mark.parametrize("vision_id", FAMILIES)
def test_resize_crop_is_timms_transform(vision_id):
    row = vision_spec(vision_id)
    spec = row.image_spec()
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(row.timm_name).to_dict())
    config["input_size"] = (3, spec.resolution, spec.resolution)
    if vision_id.startswith(WHOLE):
        config["crop_pct"] = 1.0
    config["crop_mode"] = "center"
    transform = timm.data.create_transform(**config, is_training=False)
    for size in PICTURES:
        pixels = picture(*size)
        expected = transform(Image.fromarray(pixels))
        torch.testing.assert_close(ours(pixels, spec, "resize-crop"), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("vision_id", ["clip-vit-l-336px", "siglip-vit-so400m-384px", "dinov2-vit-l"])
def test_naive_and_letterbox_are_the_published_transforms(vision_id):
    from torchvision import transforms as tv
    from torchvision.transforms.functional import pad

    spec = vision_spec(vision_id).image_spec()
    R, fill = spec.resolution, tuple(int(255 * m) for m in spec.mean)
    end = [tv.ToTensor(), tv.Normalize(spec.mean, spec.std)]
    naive = tv.Compose([tv.Resize((R, R), tv.InterpolationMode.BICUBIC), *end])
    crop = tv.Compose([tv.Resize(R, tv.InterpolationMode.BICUBIC), tv.CenterCrop(R), *end])

    def letterbox(image: Image.Image) -> torch.Tensor:
        (width, height), side = image.size, max(image.size)
        return crop(pad(image, ((side - width) // 2, (side - height) // 2), fill, "constant"))

    for size in PICTURES:
        pixels = picture(*size)
        image = Image.fromarray(pixels)
        torch.testing.assert_close(ours(pixels, spec, "resize-naive"), naive(image), atol=2e-6, rtol=0)
        torch.testing.assert_close(ours(pixels, spec, "letterbox"), letterbox(image), atol=2e-6, rtol=0)


def test_fastvit_hd_is_the_processor_of_its_repository():
    """Shortest side to R, centre crop, mean 0, std 1: its preprocessor_config.json."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 256, "width": 256}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    model = timm.create_model("fastvit_t8", pretrained=False, num_classes=0)
    spec = FastViTHD(model, 256).image_spec
    for size in PICTURES:
        pixels = picture(*size)
        expected = torch.as_tensor(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0])
        torch.testing.assert_close(ours(pixels, spec, "resize-crop"), expected, atol=2e-6, rtol=0)


def test_towers_of_a_pair_normalise_as_they_do_alone():
    from dataclasses import replace

    pair = ROWS["dinosiglip-vit-so-224px"]
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    towers = tuple(
        (n, replace(t, kwargs=small | ({"init_values": 1.0} if n == "dino" else {}))) for n, t in pair.towers
    )
    fused = replace(pair, towers=towers).build(pretrained=False, seed=0)
    frames = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        alone = [spec.build(pretrained=False, seed=i)(frames) for i, (_, spec) in enumerate(towers)]
        torch.testing.assert_close(fused(frames), torch.cat(alone, dim=-1))
    assert fused.num_patches == 256 and fused.embed_dim == 48


def test_any_pair_is_one_row():
    from prismatic.models.vision.fused import FusedSpec
    from prismatic.models.vision.timm_vit import ViTSpec
    from prismatic.models.vision.zoo import VISION

    row = FusedSpec(
        (
            ("dinov3", ViTSpec("vit_small_patch16_dinov3.lvd1689m", image_size=256)),
            ("siglip2", ROWS["siglip2-vit-b16-256px"]),
        )
    )
    VISION.add("my-pair", row)
    try:
        with torch.device("meta"):
            pair = build_vision("video-my-pair", pretrained=False)
        assert (pair.num_patches, pair.embed_dim, pair.image_spec.resolution) == (256, 384 + 768, 256)
        assert {k.split(".")[0] for k in pair.state_dict()} == {"dinov3_featurizer", "siglip2_featurizer"}
    finally:
        del VISION._entries["my-pair"]


@pytest.mark.parametrize(("size", "tokens"), [(256, 16), (512, 64), (768, 144), (1024, 256), (1536, 576)])
def test_fastvit_hd_tokens(size, tokens):
    spec = ROWS[f"fastvit-hd-{size}px"]
    assert isinstance(spec, FastViTHDSpec)
    with torch.device("meta"):
        vision = spec.build(pretrained=False, seed=0)
        out = vision(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert out.shape == (1, tokens, 3072) and vision.num_patches == tokens
