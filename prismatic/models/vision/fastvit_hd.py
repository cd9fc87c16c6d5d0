"""FastViT-HD, the encoder of FastVLM: timm's fastvit_mci3, one feature per 64 x 64 pixels, 3072 wide.

Weights come from a FastVLM repository on the hub (Apple's licence: research only); timm's own weights of fastvit_mci3
are another model's (MobileCLIP2-S3) and are not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from prismatic.models.errors import first_line
from prismatic.models.seeding import seeded
from prismatic.models.vision.base import normalise
from prismatic.types import ImageSpec

STRIDE = 64
APPLE_PREFIX = "model.vision_tower.vision_tower.model."


class FastViTHD(nn.Module):
    """Frames uint8 [F, 3, R, R] to features [F, P, 3072], P = (R / 64)^2, of the last convolution.

    Batch norms are fused into the convolutions (timm's inference_mode), as in the published weights.
    """

    def __init__(self, featurizer: nn.Module, resolution: int) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.image_spec = ImageSpec(resolution, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.num_patches = (resolution // STRIDE) ** 2
        self.embed_dim: int = featurizer.num_features
        self.eval()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Features [F, P, 3072], row by row of the picture, in the module's dtype."""
        dtype = next(self.featurizer.parameters()).dtype
        grid = self.featurizer.forward_features(normalise(frames, self.image_spec).to(dtype))  # [F, Dv, h, w]
        return grid.flatten(2).transpose(1, 2)

    def used_parameters(self) -> Iterable[nn.Parameter]:
        """All parameters: the classifier is left out when the model is built."""
        return list(self.featurizer.parameters())

    def train(self, mode: bool = True) -> FastViTHD:
        """Stays in eval mode: a few clips of a batch are no sample to take statistics of."""
        return super().train(False)


def timm_key(key: str) -> str:
    """The timm name of a parameter of the published encoder, for example `network.8.proj.0.se.reduce.weight` ->
    `stages.4.downsample.proj.0.se.fc1.weight`. The network is a flat list: stages at 0, 2, 4, 7, 10, a downsampling
    in front of each but the first (1, 3, 5, 8), a positional encoding in front of the last two (6, 9).
    """
    match = re.match(r"network\.(\d+)\.(.*)", key)
    if match:
        index, rest = int(match[1]), match[2]
        stage = (0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4)[index]
        part = {1: "downsample.", 3: "downsample.", 5: "downsample.", 8: "downsample.", 6: "pos_emb.", 9: "pos_emb."}
        key = f"stages.{stage}.{part.get(index, 'blocks.')}{rest}"
    for theirs, timms in (
        ("patch_embed", "stem"),
        ("conv_exp", "final_conv"),
        ("se.reduce", "se.fc1"),
        ("se.expand", "se.fc2"),
        ("convffn", "mlp"),
        ("lkb_reparam", "reparam_conv"),
    ):
        key = key.replace(theirs, timms)
    return re.sub(r"(layer_scale(_[12])?)$", r"\1.gamma", key)


def read_encoder(files: Iterable[str]) -> dict[str, torch.Tensor]:
    """The encoder's weights, by their timm names, out of the safetensors files of a FastVLM checkpoint."""
    from safetensors import safe_open

    state: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = [n for n in tensors.keys() if n.startswith(APPLE_PREFIX)]
            for name in names:
                key = name.removeprefix(APPLE_PREFIX)
                if not key.startswith("head."):
                    state[timm_key(key)] = tensors.get_tensor(name)
    return state


@dataclass(frozen=True)
class FastViTHDSpec:
    """A row of the zoo: side R in pixels (a multiple of 64), and the hub repository that holds the weights."""

    image_size: int
    repo: str = "apple/FastVLM-0.5B"

    def build(self, *, pretrained: bool, seed: int) -> nn.Module:
        """The backbone. Raises ValueError when the weights cannot be had."""
        import timm

        with seeded(seed):
            model = timm.create_model("fastvit_mci3", pretrained=False, num_classes=0, inference_mode=True)
        if pretrained:
            model.load_state_dict(read_encoder(self._download()), strict=True)
        return FastViTHD(model, self.image_size)

    def _download(self) -> list[str]:
        from pathlib import Path

        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(self.repo, allow_patterns=["*.safetensors"])
        except OSError as error:
            raise ValueError(
                f"cannot get the weights of FastViT-HD from '{self.repo}': {first_line(error)}; "
                "check the network, or build it with random weights: --model.pretrained_backbones false"
            ) from error
        return sorted(str(path) for path in Path(folder).glob("*.safetensors"))
