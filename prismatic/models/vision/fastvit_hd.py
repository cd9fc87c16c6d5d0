"""FastViT-HD, the encoder of FastVLM: timm's fastvit_mci3, one feature per 64 x 64 pixels, 3072 wide.

Weights come from a FastVLM repository on the hub (Apple's licence: research only); timm's own weights of fastvit_mci3
are another model's (MobileCLIP2-S3) and are not used.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prismatic.models.errors import first_line
from prismatic.models.hub import cache_dir, explain
from prismatic.models.pickle_scan import check_pickles
from prismatic.models.seeding import seeded
from prismatic.models.vision.base import normalise
from prismatic.types import ImageSpec

STRIDE = 64
APPLE_PREFIX = "model.vision_tower.vision_tower.model."
"""In front of the encoder's keys in apple/FastVLM-* and in the llava-fastvithd_* folders."""
TRANSFORMERS_PREFIXES = ("model.vision_tower.timm_model.", "vision_tower.timm_model.")
"""In checkpoints that were converted for Transformers: the names behind it are timm's already."""


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


def read_encoder(files: Iterable[str | Path]) -> dict[str, torch.Tensor]:
    """The encoder's weights, by their timm names, out of the files of a FastVLM checkpoint; other weights stay unread.

    Raises ValueError for a file that cannot be read, or holds more than tensors.
    """
    state: dict[str, torch.Tensor] = {}
    for file in files:
        for name, tensor in _tensors(Path(file)):
            if name.startswith(APPLE_PREFIX):
                key = name.removeprefix(APPLE_PREFIX)
                if not key.startswith("head."):
                    state[timm_key(key)] = tensor()
            else:
                prefix = next((p for p in TRANSFORMERS_PREFIXES if name.startswith(p)), None)
                if prefix:
                    state[name.removeprefix(prefix)] = tensor()
    return state


def _tensors(file: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Names of a weight file, each with a function that reads its tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    yield name, partial(tensors.get_tensor, name)
            return
        check_pickles(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"the weights in {file} cannot be read (truncated?): {first_line(error)}") from error
    for name, value in state.items():
        yield name, partial(_same, value)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class FastViTHDSpec:
    """A row of the zoo: side R in pixels (a multiple of 64), and where the weights are.

    source: a FastVLM repository of the hub, or a local folder (a download of it, or an unpacked `llava-fastvithd_*`).
    kwargs: for the timm class.
    """

    image_size: int
    source: str = "apple/FastVLM-0.5B"
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def origin(self) -> str:
        """Where the weights come from, for tables."""
        return self.source

    def build(self, *, pretrained: bool, seed: int) -> nn.Module:
        """The backbone. Raises ValueError when the weights cannot be had, or are another encoder's."""
        import timm

        with seeded(seed):
            model = timm.create_model(
                "fastvit_mci3", pretrained=False, num_classes=0, inference_mode=True, **self.kwargs
            )
        if pretrained:
            self._load(model)
        return FastViTHD(model, self.image_size)

    def _load(self, model: nn.Module) -> None:
        state = read_encoder(self._files())
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            wanted = model.state_dict()
            missing = sorted(wanted.keys() - state.keys())
            raise ValueError(
                f"'{self.source}' does not hold the weights of FastViT-HD: {len(missing)} of {len(wanted)} are missing"
                + (f", for example {missing[0]}" if missing else f"; {' '.join(str(error).split())[:300]}")
            ) from error

    def _files(self) -> list[Path]:
        from huggingface_hub import snapshot_download

        folder = Path(self.source).expanduser()
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(self.source, allow_patterns=["*.safetensors"], cache_dir=cache_dir()))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"cannot get the weights of FastViT-HD from '{self.source}': {explain(error, self.source)}; "
                    "check the network, or build it with random weights: --model.pretrained_backbones false"
                ) from error
        return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
