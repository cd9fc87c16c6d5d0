"""timm's ViTs as Transformers' vision models: the same numbers, on small models of the real layouts."""

from __future__ import annotations

import pytest
import torch

from prismatic.export.errors import ExportError
from prismatic.export.vision import convert_vision, vision_state
from prismatic.models.vision.base import normalise
from prismatic.models.vision.fastvit_hd import FastViTHDSpec
from prismatic.models.vision.fused import FusedSpec
from prismatic.models.vision.timm_vit import ViTSpec
from prismatic.models.vision.zoo import VISION, vision_spec

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 4}


def _lively(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)


@pytest.mark.parametrize(
    ("name", "kind", "act"),
    [
        ("vit_base_patch16_clip_quickgelu_224.openai", "clip", "quick_gelu"),
        ("vit_base_patch16_clip_224.laion2b", "clip", "gelu"),
        ("vit_base_patch16_siglip_224.webli", "siglip", "gelu"),
        ("vit_so400m_patch14_siglip_384.webli", "siglip", "gelu"),
    ],
)
def test_the_same_features(name: str, kind: str, act: str) -> None:
    from transformers import AutoModel

    # 50 pixels are three patches of 16 or 14 and a rest that both leave out, as 384 is with patches of 14.
    backbone = ViTSpec(name, image_size=50, kwargs=SMALL).build(pretrained=False, seed=0)
    _lively(backbone)
    tower = convert_vision(backbone)
    assert (tower.kind, tower.config.hidden_act, tower.feature_layer) == (kind, act, -2)
    theirs = AutoModel.from_config(tower.config).eval()
    theirs.load_state_dict(vision_state(backbone), strict=True)
    frames = torch.randint(0, 256, (2, 3, 50, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = backbone(frames)
        hidden = theirs(normalise(frames, backbone.image_spec), output_hidden_states=True).hidden_states[-2]
    assert hidden.shape[1] == ours.shape[1] + tower.extra_tokens
    torch.testing.assert_close(hidden[:, tower.extra_tokens :], ours, atol=1e-4, rtol=1e-5)


def test_the_same_features_of_fastvit_hd() -> None:
    from transformers import AutoModel

    backbone = FastViTHDSpec(128).build(pretrained=False, seed=0)
    tower = convert_vision(backbone)
    theirs = AutoModel.from_config(tower.config).eval()
    theirs.load_state_dict(vision_state(backbone), strict=True)
    frames = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        grid = theirs(normalise(frames, backbone.image_spec)).last_hidden_state
        torch.testing.assert_close(grid.flatten(2).transpose(1, 2), backbone(frames), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vision_id", [i for i in VISION.names() if not i.startswith("fastvit")])
def test_every_row_is_converted_or_refused(vision_id: str) -> None:
    spec = vision_spec(vision_id)
    with torch.device("meta"):
        backbone = spec.build(pretrained=False, seed=0)
    if isinstance(spec, FusedSpec) or vision_id.startswith(("dino", "in1k")) or "naflex" in vision_id:
        with pytest.raises(ExportError, match=r"layout|no place"):
            convert_vision(backbone)
    else:
        tower = convert_vision(backbone)
        assert tower.kind == ("clip" if vision_id.startswith("clip") else "siglip")
        assert tower.config.image_size == backbone.image_spec.resolution
