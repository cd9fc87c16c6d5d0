"""Dataset configurations: which annotation files, where their media are, and how samples are made of them.

`DatasetConfig` is a draccus choice: `--dataset.type ID` picks an entry of `datasets/`, any field can be overridden.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, Union

import draccus

Annotations = Union[Path, list[Path]]  # noqa: UP007  draccus decodes typing.Union inside a tuple, not X | Y


@dataclass
class OnlineWeaveConfig:
    """Weave clips into examples while training, anew in every epoch."""

    videos_per_example: int = 0  # Clips L of an example; 0: rows are taken as they are
    curriculum: tuple[int, ...] = ()  # L by epoch, e.g. '[1,2,4]'; then videos_per_example, or else the last one
    total_frames: int | None = None  # Frames of an example over all its clips; default: --model.num_frames
    method: str = "random"  # Which clips meet: random (any), or a method of `webvid.py cluster`, e.g. visual
    clusters: Annotations | None = None  # Clusters file (several: epochs take turns), or folder of embeddings
    form: str = "joined"  # Question and answer; as --form of `webvid.py weave`
    prompt: str = "Describe what is happening in the video."  # The question of forms that have none of their own
    prompts: Path | None = None  # A file of questions, one a line, of which each example gets one instead of `prompt`

    @property
    def enabled(self) -> bool:
        """Whether anything is woven."""
        return bool(self.videos_per_example or self.curriculum)

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work, or would do nothing."""
        flag = "--dataset.weave"
        if self.videos_per_example < 0 or any(count < 1 for count in self.curriculum):
            raise ValueError(
                f"{flag}.videos_per_example and each entry of {flag}.curriculum count clips: 1 or more, got "
                f"{self.videos_per_example} and {list(self.curriculum)}"
            )
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if not self.enabled and changed:
            raise ValueError(f"{flag}.{changed[0]} does nothing without {flag}.videos_per_example (2, 4, ...)")
        if self.total_frames is not None and self.total_frames < 1:
            raise ValueError(f"{flag}.total_frames must be at least 1, got {self.total_frames}")
        if self.method == "random" and self.clusters is not None:
            raise ValueError(
                f"{flag}.method random takes no clusters, any clips meet; pass {flag}.method visual (or another "
                f"method of `webvid.py cluster`) with {flag}.clusters"
            )


@dataclass
class DatasetConfig(draccus.ChoiceRegistry):
    """Annotation files with their media folders for both stages, and the treatment of samples."""

    dataset_id: str = "webvid"  # Name of the dataset; part of the default run id
    align_stage_components: tuple[Annotations, Path] = (Path(""), Path(""))  # ["annotations.json", "media folder"]
    finetune_stage_components: tuple[Annotations, Path] = (
        Path(""),
        Path(""),
    )  # A list of files: one per epoch
    dataset_root_dir: Path = Path("data")  # The components are relative to it; an absolute component stands alone

    sampler: str = "uniform"  # Which frames of a video are taken; `python -m prismatic list sampler`
    decoder: str = "pyav"  # pyav (exact on every format), torchcodec, decord
    short_clips: Literal["repeat", "fewer", "error"] = "repeat"  # A video with fewer frames than num_frames
    augmentations: tuple[str, ...] = ()  # Train-time only, same for all frames of a clip, e.g. '["color-jitter"]'
    packing: bool = True  # Examples of a forward pass share one row without padding; attention never crosses them
    num_workers: int = 2  # Processes that decode; 0 decodes in the training process
    prefetch: int = 2  # Micro-batches that each of these processes has ready
    decode_timeout: float = 120.0  # Seconds after which reading a sample is ended (num_workers > 0); 0: never
    on_error: Literal["raise", "skip"] = "raise"  # A broken sample stops the run, or is replaced, counted and listed
    max_skipped_share: float = 0.01  # With on_error skip: the run stops above this share of samples skipped
    feature_cache: Path | None = None  # Keep a frozen vision backbone's features here: clips are then encoded only once
    feature_cache_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # float32: exact also for an fp32 tower
    feature_cache_limit: float | None = None  # GB (10^9 bytes) above which nothing is added; default: no limit
    weave: OnlineWeaveConfig = field(default_factory=OnlineWeaveConfig)  # Weave clips into examples while training
    metric: str | None = None  # Scorer of evaluate.py beside the general ones, e.g. moving-shapes

    @classmethod
    def default_choice_name(cls) -> str:
        """Dataset used when only `--dataset.FIELD` is given."""
        return "webvid"

    def components(self, stage: str) -> tuple[list[Path], Path | str]:
        """Annotation files (more than one: one per epoch, in turn) and media folder of a stage, joined to the root.

        A media folder at a URL that fsspec understands ("s3://bucket/videos") stays one, as a str.
        Raises ValueError when the dataset has none for that stage.
        """
        name = "align_stage_components" if stage == "align" else "finetune_stage_components"
        annotations, media = getattr(self, name)
        files = annotations if isinstance(annotations, list) else [annotations]
        if not files or any(str(file) in ("", ".") for file in files):
            raise ValueError(
                f"dataset '{self.dataset_id}' has no annotations for stage {stage}; pass "
                f'--dataset.{name} \'["annotations.json", "media_folder"]\''
            )
        return [self.dataset_root_dir / file for file in files], url_of(media) or self.dataset_root_dir / media

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        if self.num_workers < 0:
            raise ValueError(f"--dataset.num_workers must be 0 or more, got {self.num_workers}")
        if self.prefetch < 1:
            raise ValueError(f"--dataset.prefetch must be 1 or more, got {self.prefetch}")
        if not 0 <= self.decode_timeout < float("inf"):
            raise ValueError(f"--dataset.decode_timeout must be 0 (no limit) or seconds, got {self.decode_timeout}")
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"--dataset.max_skipped_share must be between 0 and 1, got {self.max_skipped_share}")
        if any(len(name) == 1 for name in self.augmentations):
            raise ValueError(
                "--dataset.augmentations takes a list in brackets, for example "
                "--dataset.augmentations '[\"color-jitter\"]'"
            )
        self._validate_cache()
        self.weave.validate()

    def _validate_cache(self) -> None:
        if self.feature_cache is None:
            default = DatasetConfig()
            for name in ("feature_cache_dtype", "feature_cache_limit"):
                if getattr(self, name) != getattr(default, name):
                    raise ValueError(f"--dataset.{name} does nothing without --dataset.feature_cache FOLDER")
        elif url_of(self.feature_cache) is not None:
            raise ValueError(f"--dataset.feature_cache is a local folder, not a URL; got {self.feature_cache}")
        if self.feature_cache_limit is not None and not self.feature_cache_limit > 0:
            raise ValueError(
                f"--dataset.feature_cache_limit must be greater than 0 GB, got {self.feature_cache_limit:g}"
            )


def url_of(folder: Path) -> str | None:
    """The URL that a path was made of: `Path` leaves one of its two slashes. A single letter is a drive, not a URL."""
    match = re.match(r"((?:[\w+.\-]{2,}::)*[A-Za-z][\w+.\-]+):/(?=.)", folder.as_posix())
    if match is None:
        return None
    slashes = "///" if match[1].endswith("file") else "//"
    return f"{match[1]}:{slashes}{folder.as_posix()[match.end() :]}"


def register(dataset_id: str, align: tuple[Any, str] | None, finetune: tuple[Any, str], **values: Any) -> None:
    """File a dataset under its id: (annotations, media folder) of both stages, and fields unlike the defaults."""

    def paths(component: tuple[Any, str] | None) -> tuple[Annotations, Path]:
        annotations, media = component or ("", "")
        files = [Path(a) for a in annotations] if isinstance(annotations, list) else Path(annotations)
        return files, Path(media)

    values = {
        "dataset_id": dataset_id,
        "align_stage_components": paths(align),
        "finetune_stage_components": paths(finetune),
        **values,
    }
    types = DatasetConfig.__dataclass_fields__
    changed = [
        (n, types[n].type, field(default_factory=(lambda v=v: v)) if isinstance(v, list) else field(default=v))
        for n, v in values.items()
    ]
    namespace = {"__module__": __name__, "__doc__": f"Dataset {dataset_id}."}
    cls = make_dataclass("Dataset_" + dataset_id, changed, bases=(DatasetConfig,), namespace=namespace)
    DatasetConfig.register_subclass(dataset_id)(cls)
