"""Fused towers: order on the channel axis, published key prefixes, each with its own normalisation."""

from __future__ import annotations

import pytest
import torch

from prismatic.models.vision.fused import FusedViT
from prismatic.models.vision.timm_vit import CustomViTSpec, TimmViT
from prismatic.types import ImageSpec


def tower(width: int, seed: int, mean: float, R: int = 16) -> TimmViT:
    sizes = {"patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": 2}
    vit = CustomViTSpec(R, sizes).build(pretrained=False, seed=seed)
    return TimmViT(vit.featurizer, ImageSpec(R, mean=(mean,) * 3, crop_pct=0.9 + mean / 10))


def test_features_keys_and_spec():
    dino, siglip = tower(16, 0, 0.1), tower(24, 1, 0.5)
    fused = FusedViT({"dino": dino, "siglip": siglip})
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    out = fused(x)
    assert out.shape == (2, 4, 40) and fused.embed_dim == 40 and fused.num_patches == 4
    torch.testing.assert_close(out, torch.cat([dino(x), siglip(x)], dim=-1))
    assert {k.split(".")[0] for k in fused.state_dict()} == {"dino_featurizer", "siglip_featurizer"}
    assert len(fused.state_dict()) == len(dino.state_dict()) + len(siglip.state_dict())
    assert fused.image_spec.mean == dino.image_spec.mean and fused.image_spec.crop_pct == siglip.image_spec.crop_pct
    assert fused.to(torch.bfloat16)(x).dtype == torch.bfloat16
    assert set(map(id, fused.used_parameters())) == {id(p) for t in (dino, siglip) for p in t.used_parameters()}


def test_towers_must_agree():
    with pytest.raises(ValueError, match="same patches and resolution"):
        FusedViT({"dino": tower(16, 0, 0.5), "clip": tower(16, 0, 0.5, R=32)})
