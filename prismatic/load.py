"""`prismatic.load()`: a trained model from a run folder, a checkpoint file, or a published id."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import prismatic.conf.presets  # noqa: F401  registers the ids that a saved configuration may name
from prismatic.build import build_vlm
from prismatic.conf.hub import HUB_MODELS, hub_model
from prismatic.conf.models import LoRAConfig, ModelConfig
from prismatic.conf.run import looks_like_token
from prismatic.conf.token import read_token
from prismatic.models.checkpoints import (
    CheckpointLoadError,
    apply_weights,
    modules_in,
    read_model_config,
    read_weights,
    resolve_source,
)
from prismatic.models.llm.lora import load_adapter
from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)

# Fields that older configurations hold and that say nothing about the model itself.
_OLDER_FIELDS = {"type", "ckpt_interval"}


def load(
    model_id_or_path: str | Path,
    hf_token: str | None = None,
    cache_dir: str | Path | None = None,
    *,
    num_frames: int | None = None,
) -> PrismaticVLM:
    """A trained model, on the CPU in fp32 and in eval mode; `.to("cuda", dtype=torch.bfloat16)` moves it.

    Args:
        model_id_or_path: a run folder, a file in its `checkpoints/`, or an id of `available_model_ids()`.
        hf_token: hub token, a file that holds it, or the environment variable that does.
        cache_dir: where hub files are kept (default: the hub library's own place).
        num_frames: frames that a video is sampled to; default: as trained.

    Raises ValueError: unknown id, no checkpoint, weights that do not fit the configuration, num_frames below 1.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    return load_source(model_id_or_path, _token(hf_token), cache_dir, num_frames=num_frames)[0]


@dataclass(frozen=True)
class Saved:
    """What a model was loaded from. name: of the run or id. config: of the run. modules: those with weights in it."""

    name: str
    config: dict[str, Any]
    modules: frozenset[str]


def load_source(
    model_id_or_path: str | Path,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    *,
    num_frames: int | None = None,
) -> tuple[PrismaticVLM, Saved]:
    """`load`, and what was found at the path. token: a hub token itself."""
    source = resolve_source(model_id_or_path, hf_token=token, cache_dir=cache_dir)
    config = model_config(read_model_config(source.config), source.config)
    if num_frames is not None:
        config.num_frames = num_frames
    weights = {path: read_weights(path) for path in source.files}
    modules = frozenset().union(*(modules_in(state) for state in weights.values()))
    vlm = build_vlm(
        config,
        hf_token=token,
        cache_dir=cache_dir,
        llm_definition=source.llm_definition,
        weights_come=modules,
    )
    for path, state in weights.items():
        apply_weights(vlm, state, path)
    if source.adapter is not None:
        load_adapter(vlm.llm_backbone, source.adapter)
    elif config.lora.rank and source.run_dir is not None:
        raise CheckpointLoadError(
            f"{source.weights}: the run trained adapters (--model.lora.rank {config.lora.rank}), but the folder with "
            "them, whose name ends in '-adapter', is not beside the weights"
        )
    name = source.run_dir.name if source.run_dir else str(model_id_or_path)
    return vlm.eval(), Saved(name, json.loads(source.config.read_text(encoding="utf-8")), modules)


def model_config(saved: dict[str, Any], path: Path) -> ModelConfig:
    """The ModelConfig of a saved `model` section, of this project or the older ones.

    Raises CheckpointLoadError for fields that are not known.
    """
    known = {field.name for field in fields(ModelConfig)}
    unknown = sorted(saved.keys() - known - _OLDER_FIELDS)
    if unknown:
        raise CheckpointLoadError(f"{path}: unknown settings {', '.join(unknown)}; was it written by a newer version?")
    config = ModelConfig(**{name: value for name, value in saved.items() if name in known})
    if isinstance(config.lora, dict):
        config.lora = LoRAConfig(**{**config.lora, "target_modules": tuple(config.lora["target_modules"])})
    return config


def available_model_ids() -> list[str]:
    """Ids of the published models that `load` takes."""
    return HUB_MODELS.names()


def available_model_ids_and_names() -> list[tuple[str, tuple[str, ...]]]:
    """Ids of the published models with their names in the papers."""
    return [(model_id, model.names) for model_id, model in HUB_MODELS.items()]


def get_model_description(model_id_or_name: str) -> dict[str, Any]:
    """What a published model is made of. Raises ValueError for an unknown id or name."""
    model = hub_model(model_id_or_name)
    description: dict[str, Any] = {"id": model.model_id, "names": list(model.names), "repository": model.repo_id}
    preset = ModelConfig.get_known_choices().get(model.model_id)
    if preset is not None:
        cfg = preset()
        description |= {
            "vision_backbone_id": cfg.vision_backbone_id,
            "llm_backbone_id": cfg.llm_backbone_id,
            "arch_specifier": cfg.arch_specifier,
            "image_resize_strategy": cfg.image_resize_strategy,
        }
    return description


def _token(hf_token: str | None) -> str | None:
    # A token itself is taken as it is; the hub's tokens begin so.
    return hf_token if hf_token is None or looks_like_token(hf_token) else read_token(hf_token)


class _CallableModule(ModuleType):
    """Importing this module puts it in the place of the function `prismatic.load`, so it does the function's work."""

    def __call__(self, *args: Any, **kwargs: Any) -> PrismaticVLM:
        return load(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
