"""FastViT-HD: features of the last convolution, and the names of the published weights."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from prismatic.models.vision.fastvit_hd import APPLE_PREFIX, FastViTHD, read_encoder, timm_key
from tests.models.vision.test_official_weights import apple_key


@pytest.mark.parametrize(
    ("theirs", "timms"),
    [
        ("patch_embed.0.reparam_conv.weight", "stem.0.reparam_conv.weight"),
        ("network.0.1.token_mixer.reparam_conv.bias", "stages.0.blocks.1.token_mixer.reparam_conv.bias"),
        ("network.1.proj.0.lkb_reparam.weight", "stages.1.downsample.proj.0.reparam_conv.weight"),
        ("network.2.3.layer_scale", "stages.1.blocks.3.layer_scale.gamma"),
        ("network.4.23.convffn.fc1.weight", "stages.2.blocks.23.mlp.fc1.weight"),
        ("network.6.reparam_conv.weight", "stages.3.pos_emb.reparam_conv.weight"),
        ("network.7.0.layer_scale_1", "stages.3.blocks.0.layer_scale_1.gamma"),
        ("network.8.proj.0.se.reduce.weight", "stages.4.downsample.proj.0.se.fc1.weight"),
        ("network.10.1.token_mixer.qkv.weight", "stages.4.blocks.1.token_mixer.qkv.weight"),
        ("conv_exp.se.expand.bias", "final_conv.se.fc2.bias"),
    ],
)
def test_names(theirs, timms):
    assert timm_key(theirs) == timms


def test_every_weight_of_a_published_checkpoint_finds_its_place(tmp_path):
    with torch.device("meta"):
        expected = timm.create_model("fastvit_mci3", num_classes=0, inference_mode=True).state_dict()
    small = {APPLE_PREFIX + apple_key(k): torch.zeros(1) for k in expected}
    assert len(small) == len(expected)
    extra = {APPLE_PREFIX + "head.proj": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    save_file({**small, **extra}, tmp_path / "model.safetensors")
    assert read_encoder([str(tmp_path / "model.safetensors")]).keys() == expected.keys()


def test_features_are_the_last_convolution_row_by_row():
    model = timm.create_model("fastvit_t8", pretrained=False, num_classes=0, inference_mode=True).eval()
    vision = FastViTHD(model, 128)  # stride 32: same class, small model
    x = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        out, grid = vision(x), model.forward_features(x / 255.0)
    torch.testing.assert_close(out[0, 5], grid[0, :, 1, 1])
    assert vision.embed_dim == out.shape[-1] == model.num_features
    assert not vision.train().training
