"""The vision backbones by id: one row each. `video-ID` is ID: an image is a clip of one frame.

Any other timm ViT is an id too, as `timm:NAME` or by its bare timm name; `timm:hf-hub:OWNER/NAME` and
`timm:local-dir:FOLDER` are repositories and folders in timm's format. `fastvit-hd-RESOLUTIONpx:SOURCE` takes the
weights of FastViT-HD from another FastVLM repository or folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from prismatic.models.hub import hub_access
from prismatic.models.vision.base import VisionSpec
from prismatic.models.vision.fastvit_hd import FastViTHDSpec
from prismatic.models.vision.fused import FusedSpec
from prismatic.models.vision.timm_vit import TIMM_PREFIX, TIMM_SOURCES, CustomViTSpec, ViTSpec
from prismatic.registry import Registry, UnknownIdError, unknown_id_message

FLAG = "--model.vision_backbone_id"
VIDEO_PREFIX = "video-"

VISION: Registry[VisionSpec] = Registry("vision backbone", package="prismatic.models.vision", flag=FLAG)

# `.openai` weights were trained with QuickGELU; under timm's plain names the same weights get another activation.
CLIP_B = ViTSpec("vit_base_patch16_clip_quickgelu_224.openai")
CLIP_L = ViTSpec("vit_large_patch14_clip_quickgelu_224.openai")
CLIP_L_336 = ViTSpec("vit_large_patch14_clip_quickgelu_336.openai")
# The `.webli` tag is spelled out: without it timm now takes SigLIP2's weights for some of these names. For SigLIP and
# IN1K the shortest side becomes R (crop_pct 1), where timm would enlarge by 1 / 0.9 and cut the border off.
SIGLIP_SO_224 = ViTSpec("vit_so400m_patch14_siglip_224.webli", crop_pct=1.0)
SIGLIP_SO_384 = ViTSpec("vit_so400m_patch14_siglip_384.webli", crop_pct=1.0)
DINOV2 = "vit_large_patch14_reg4_dinov2.lvd142m"

ROWS: dict[str, VisionSpec] = {
    "clip-vit-b": CLIP_B,
    "clip-vit-l": CLIP_L,
    "clip-vit-l-336px": CLIP_L_336,
    "siglip-vit-b16-224px": ViTSpec("vit_base_patch16_siglip_224.webli", crop_pct=1.0),
    "siglip-vit-b16-256px": ViTSpec("vit_base_patch16_siglip_256.webli", crop_pct=1.0),
    "siglip-vit-b16-384px": ViTSpec("vit_base_patch16_siglip_384.webli", crop_pct=1.0),
    "siglip-vit-so400m": SIGLIP_SO_224,
    "siglip-vit-so400m-384px": SIGLIP_SO_384,
    "dinov2-vit-l": ViTSpec(DINOV2, image_size=224),
    "in1k-vit-l": ViTSpec("vit_large_patch16_224.augreg_in21k_ft_in1k", crop_pct=1.0),
    "dinoclip-vit-l-336px": FusedSpec((("dino", ViTSpec(DINOV2, image_size=336)), ("clip", CLIP_L_336))),
    "dinosiglip-vit-so-224px": FusedSpec((("dino", ViTSpec(DINOV2, image_size=224)), ("siglip", SIGLIP_SO_224))),
    "dinosiglip-vit-so-384px": FusedSpec((("dino", ViTSpec(DINOV2, image_size=384)), ("siglip", SIGLIP_SO_384))),
    "siglip2-vit-b16-224px": ViTSpec("vit_base_patch16_siglip_224.v2_webli", crop_pct=1.0),
    "siglip2-vit-b16-256px": ViTSpec("vit_base_patch16_siglip_256.v2_webli", crop_pct=1.0),
    "siglip2-vit-b16-384px": ViTSpec("vit_base_patch16_siglip_384.v2_webli", crop_pct=1.0),
    "siglip2-vit-b16-512px": ViTSpec("vit_base_patch16_siglip_512.v2_webli", crop_pct=1.0),
    "siglip2-vit-l16-256px": ViTSpec("vit_large_patch16_siglip_256.v2_webli", crop_pct=1.0),
    "siglip2-vit-l16-384px": ViTSpec("vit_large_patch16_siglip_384.v2_webli", crop_pct=1.0),
    "siglip2-vit-so400m-224px": ViTSpec("vit_so400m_patch14_siglip_224.v2_webli", crop_pct=1.0),
    "siglip2-vit-so400m-378px": ViTSpec("vit_so400m_patch14_siglip_378.v2_webli", crop_pct=1.0),
    "siglip2-vit-so400m16-256px": ViTSpec("vit_so400m_patch16_siglip_256.v2_webli", crop_pct=1.0),
    "siglip2-vit-so400m16-384px": ViTSpec("vit_so400m_patch16_siglip_384.v2_webli", crop_pct=1.0),
    "siglip2-vit-so400m16-512px": ViTSpec("vit_so400m_patch16_siglip_512.v2_webli", crop_pct=1.0),
    "siglip2-vit-so400m-naflex": ViTSpec("naflexvit_so400m_patch16_siglip.v2_webli"),
    "dinov3-vit-s": ViTSpec("vit_small_patch16_dinov3.lvd1689m"),
    "dinov3-vit-b": ViTSpec("vit_base_patch16_dinov3.lvd1689m"),
    "dinov3-vit-l": ViTSpec("vit_large_patch16_dinov3.lvd1689m"),
    "dinov3-vit-h-plus": ViTSpec("vit_huge_plus_patch16_dinov3.lvd1689m"),
    "fastvit-hd-256px": FastViTHDSpec(256),
    "fastvit-hd-512px": FastViTHDSpec(512),
    "fastvit-hd-768px": FastViTHDSpec(768),
    "fastvit-hd-1024px": FastViTHDSpec(1024),
    "fastvit-hd-1536px": FastViTHDSpec(1536),
    "tiny-vit": CustomViTSpec(
        image_size=72,
        mean=(0.48, 0.48, 0.48),
        std=(0.225, 0.225, 0.225),
        kwargs={
            "patch_size": 24,
            "embed_dim": 96,
            "depth": 3,
            "num_heads": 3,
            "class_token": False,
            "global_pool": "",
        },
    ),
}

for _id, _spec in ROWS.items():
    VISION.add(_id, _spec)


def vision_spec(vision_id: str) -> VisionSpec:
    """The row of an id, of `video-ID`, of `ID:SOURCE`, or of a timm name. Builds and downloads nothing.

    Raises UnknownIdError (a ValueError) with the nearest ids of the zoo and of timm.
    """
    if vision_id in VISION:
        return VISION.get(vision_id)
    name = vision_id.removeprefix(VIDEO_PREFIX)
    if name in VISION:
        return VISION.get(name)
    row, colon, source = name.partition(":")
    if colon and row in VISION:
        return _with_source(row, source)
    name = name.removeprefix(TIMM_PREFIX)
    if name.startswith(TIMM_SOURCES):
        return ViTSpec(name)
    if vision_id.startswith(TIMM_PREFIX) or "_" in name:
        import timm
        from timm.models import is_model

        if is_model(name):
            return ViTSpec(name)
        known = [*timm.list_models(), *timm.list_pretrained()]
        raise UnknownIdError(unknown_id_message("vision backbone", name, [*VISION.names(), *known], FLAG))
    return VISION.get(name)


def _with_source(row: str, source: str) -> VisionSpec:
    spec = VISION.get(row)
    if not isinstance(spec, FastViTHDSpec):
        raise ValueError(
            f"{FLAG} {row}:{source}: only FastViT-HD takes its weights from elsewhere; for a timm model write "
            "timm:hf-hub:OWNER/NAME or timm:local-dir:FOLDER"
        )
    return replace(spec, source=source)


def build_vision(
    vision_id: str,
    *,
    pretrained: bool,
    seed: int = 0,
    hf_token: str | None = None,
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """The vision backbone of an id, in fp32 on the current default device (normally the CPU).

    The module has image_spec, num_patches (P), embed_dim (Dv), used_parameters(), and maps uint8 [F, 3, R, R] to
    [F, P, Dv]. With pretrained=False no weights are downloaded and they depend on `seed` only. hf_token, cache_dir: of
    the hub. Raises ValueError for pretrained=True where there are no weights.
    """
    spec = vision_spec(vision_id)
    if pretrained and isinstance(spec, CustomViTSpec):
        raise ValueError(f"{FLAG} {vision_id} has no pretrained weights; pass --model.pretrained_backbones false")
    with hub_access(hf_token, cache_dir):
        return spec.build(pretrained=pretrained, seed=seed)
