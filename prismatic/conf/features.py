"""What a feature cache asks of the rest of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prismatic.conf.data import DatasetConfig
    from prismatic.conf.models import ModelConfig


def check_feature_cache(
    stage: str,
    model: ModelConfig,
    dataset: DatasetConfig,
    validation: Mapping[str, DatasetConfig] = MappingProxyType({}),
) -> None:
    """Raises ValueError, naming the flag, where features that are kept could not be those that training needs."""
    caching = [data for data in (dataset, *validation.values()) if data.feature_cache is not None]
    if not caching:
        return
    if stage == "full-finetune":
        raise ValueError(
            "--dataset.feature_cache keeps features of a vision backbone that does not change, and --stage "
            "full-finetune trains it; use --stage finetune or align, or leave --dataset.feature_cache out"
        )
    if model.model_path is not None:
        raise ValueError(
            f"--dataset.feature_cache works for composed models; the vision tower of --model.type {model.model_id} "
            "merges frames in its own way. Leave --dataset.feature_cache out"
        )
    if dataset.feature_cache is not None and dataset.augmentations:
        raise ValueError(
            f"--dataset.augmentations {list(dataset.augmentations)} change the pixels in each epoch, and "
            "--dataset.feature_cache keeps features of the same pixels; leave one of the two out"
        )
    first = caching[0]
    for other in caching[1:]:
        for name in ("feature_cache", "feature_cache_dtype", "feature_cache_limit"):
            if getattr(other, name) != getattr(first, name):
                raise ValueError(
                    f"--val_dataset.{name} {getattr(other, name)} ({other.dataset_id}) differs from --dataset.{name} "
                    f"{getattr(first, name)}; one run has one feature cache"
                )


def cache_folder(cache_features: str | None, dataset: DatasetConfig) -> Path | None:
    """The folder that `preprocess.py --cache_features` names: itself, or with "true" --dataset.feature_cache.

    None when no features are asked for. Raises ValueError when it names none, or two.
    """
    if cache_features is None or cache_features.lower() == "false":
        return None
    if cache_features.lower() == "true":
        if dataset.feature_cache is None:
            raise ValueError("--cache_features true needs --dataset.feature_cache FOLDER (or --cache_features FOLDER)")
        return dataset.feature_cache
    if dataset.feature_cache not in (None, Path(cache_features)):
        raise ValueError(
            f"--cache_features {cache_features} and --dataset.feature_cache {dataset.feature_cache} are two folders; "
            "give one of them"
        )
    return Path(cache_features)
