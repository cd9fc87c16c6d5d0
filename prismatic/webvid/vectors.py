"""The jobs of `embed`: videos, or captions, to one vector each.

Each video and each caption goes through the model by itself, on one thread: what a vector is does not depend on which
others are in the catalog, on the number of processes, or on the machine that a cluster picked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prismatic.data.media_paths import MediaRoot
from prismatic.types import ImageSpec
from prismatic.video.decode import open_video
from prismatic.video.sampling import ClipFacts, sample
from prismatic.video.transforms import resize
from prismatic.webvid.confined import video_path
from prismatic.webvid.pool import Failure

if TYPE_CHECKING:
    from torch import nn

Vector = np.ndarray
"""float16 [D]."""


@dataclass(frozen=True)
class Backbone:
    """What gives the vectors. model_id: of a vision backbone, or of a Transformers model. precision: fp32, bf16."""

    model_id: str
    pretrained: bool = True
    device: str = "cpu"
    precision: str = "fp32"
    seed: int = 7


@dataclass(frozen=True)
class VideoJob:
    """Tasks are (id, path relative to `videos`). threads: models at work at a time, on a CPU."""

    videos: str
    backbone: Backbone
    spec: ImageSpec
    num_frames: int
    sampler: str
    resize_strategy: str
    threads: int

    @cached_property
    def _root(self) -> MediaRoot:
        return MediaRoot(self.videos)

    def read(self, clip: tuple[str, str]) -> np.ndarray:
        """Frames of a clip, uint8 [T, 3, R, R]."""
        with open_video(video_path(self._root, clip[1])) as opened:
            facts = ClipFacts.of(opened)
            indices = sample(facts, self.num_frames, self.sampler, np.random.default_rng(self.backbone.seed))
            return resize(opened.get(indices), self.spec, self.resize_strategy).numpy()

    def finish(self, batch: Sequence[tuple[str, str]], read: Iterator[np.ndarray | Failure]) -> list[Vector | Failure]:
        """The mean feature of each clip."""
        model = vision_model(self.backbone)
        threads = 1 if self.backbone.device == "cuda" else self.threads
        with ThreadPoolExecutor(threads, initializer=_one_thread) as pool:
            waiting: deque[Future[Vector | Failure]] = deque()
            results: list[Vector | Failure] = []
            for frames in read:
                waiting.append(pool.submit(_video_vector, model, frames, self.backbone.device))
                if len(waiting) > 2 * threads:
                    results.append(waiting.popleft().result())
            return [*results, *(future.result() for future in waiting)]


@dataclass(frozen=True)
class CaptionJob:
    """Tasks are (id, caption)."""

    backbone: Backbone

    def read(self, row: tuple[str, str]) -> None:
        """Not called: there is nothing to open."""

    def finish(self, batch: Sequence[tuple[str, str]], read: Iterator[Any]) -> list[Vector | Failure]:
        """The feature of each caption."""
        before = torch.get_num_threads()
        _one_thread()
        try:
            model, tokenizer = text_model(self.backbone)
            return [_text_vector(model, tokenizer, caption, self.backbone.device) for _, caption in batch]
        finally:
            torch.set_num_threads(before)


def _one_thread() -> None:
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def vision_model(backbone: Backbone) -> nn.Module:
    """The vision backbone, kept for the life of the process. Raises ValueError when its weights cannot be had."""
    from prismatic.models.vision.zoo import build_vision

    try:
        model = build_vision(backbone.model_id, pretrained=backbone.pretrained, seed=backbone.seed)
    except ValueError as error:
        raise ValueError(str(error).replace("--model.", "--")) from error
    return _placed(model, backbone)


@lru_cache(maxsize=1)
def text_model(backbone: Backbone) -> tuple[Any, Any]:
    """(model, tokenizer) of a Transformers id or folder. Raises ValueError when it cannot be had."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    name = backbone.model_id
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if backbone.pretrained:
            model = AutoModel.from_pretrained(name)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(backbone.seed)
                model = AutoModel.from_config(AutoConfig.from_pretrained(name))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--text_encoder {name}: {str(error).splitlines()[0]}") from error
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return _placed(model, backbone), tokenizer


def _placed(model: nn.Module, backbone: Backbone) -> nn.Module:
    dtype = torch.bfloat16 if backbone.precision == "bf16" else torch.float32
    return model.eval().requires_grad_(False).to(device=backbone.device, dtype=dtype)


def _video_vector(model: nn.Module, frames: np.ndarray | Failure, device: str) -> Vector | Failure:
    if isinstance(frames, Failure):
        return frames
    with torch.inference_mode():
        features = model(torch.from_numpy(frames).to(device))  # [T, P, Dv]
        return _half(features.float().mean(dim=(0, 1)))


def _text_vector(model: Any, tokenizer: Any, caption: str, device: str) -> Vector | Failure:
    """The model's own text feature where it has one (CLIP, SigLIP), otherwise the mean over the tokens' last states."""
    limit = min(tokenizer.model_max_length, 512)
    # SigLIP's text tower has only ever seen texts that are filled up to its full length.
    padding = "max_length" if str(getattr(model.config, "model_type", "")).startswith("siglip") else False
    limit = min(limit, 64) if padding else limit
    tokens = tokenizer(caption, return_tensors="pt", truncation=True, padding=padding, max_length=limit).to(device)
    with torch.inference_mode():
        if hasattr(model, "get_text_features"):
            features = model.get_text_features(**tokens)
            # Transformers 5 wraps what version 4 gave as a tensor.
            features = features if isinstance(features, torch.Tensor) else features.pooler_output
            return _half(features[0].float())
        return _half(model(**tokens).last_hidden_state[0].float().mean(dim=0))


def _half(feature: torch.Tensor) -> Vector | Failure:
    vector = feature.cpu().numpy().astype(np.float16)
    return vector if np.isfinite(vector).all() else Failure("its feature is not finite in float16")
