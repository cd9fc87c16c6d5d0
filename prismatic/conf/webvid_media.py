"""Configurations of the subcommands of `scripts/webvid.py` that read pixels: extract, embed; and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMATS = ("folder", "shards")
IMAGE_FORMATS = ("png", "jpeg", "ppm")


def _at_least_one(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"--{name} must be {' or '.join(known)}, got '{value}'")


@dataclass
class ExtractConfig:
    """Write frames of every usable video as pictures: one folder a video, or WebDataset tar shards.

    Example: python scripts/webvid.py extract --catalog data/webvid/catalog.parquet --num_frames 16 --format shards \
    --output data/webvid/shards
    A manifest tells which frames of the video these are. Run it again after a kill, or with a catalog that has grown:
    only what is missing is done. Videos that fail are listed with their reasons in OUTPUT/failed.jsonl.
    """

    catalog: Path = Path("catalog.parquet")  # From `webvid.py catalog`; its rows with status ok are extracted
    num_frames: int = 16  # Frames of each video; a video with fewer gives all it has
    sampler: str = "uniform"  # Which frames; `python -m prismatic list sampler`
    format: str = "folder"  # folder: OUTPUT/ID/0000.png; shards: OUTPUT/000000.tar, with an index beside each
    image_format: str = "png"  # png: exact; jpeg: a tenth of the size; ppm: exact, not compressed, the quickest to read
    quality: int = 95  # Of jpeg, 1 to 100
    short_side: int | None = None  # Frames are made smaller until their shorter side has so many pixels; none: as is
    vision_backbone_id: str = ""  # Frames become this backbone's square input here, and training scales them no more
    image_resize_strategy: str = "letterbox"  # With --vision_backbone_id: as --model.image_resize_strategy of the model
    clips_per_shard: int = 256  # Videos in a shard
    output: Path = Path("frames")  # Folder of the frames
    retry_failed: bool = False  # Try the videos again that failed before
    ids: str = ""  # Only these: ID,ID,... or a file: .txt with one id a line, or a .json list
    seed: int = 7  # Of samplers that draw
    num_workers: int = 2  # Processes that decode; with --engine ray, those of each Ray task
    timeout: float = 60.0  # Seconds after which the decoding of a video counts as failed
    engine: str = "local"  # local: this machine; ray: a Ray Data pipeline, with the same output
    address: str = ""  # With --engine ray: the cluster (auto, or HOST:PORT); empty starts one on this machine

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _at_least_one(
            num_frames=self.num_frames,
            clips_per_shard=self.clips_per_shard,
            num_workers=self.num_workers,
            timeout=self.timeout,
            short_side=self.short_side,
        )
        _one_of("format", self.format, FORMATS)
        _one_of("image_format", self.image_format, IMAGE_FORMATS)
        if self.short_side is not None and self.vision_backbone_id:
            raise ValueError("--short_side and --vision_backbone_id both say how large frames become; leave one out")
        if self.image_resize_strategy != ExtractConfig.image_resize_strategy and not self.vision_backbone_id:
            raise ValueError("--image_resize_strategy does nothing without --vision_backbone_id ID")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be from 1 to 100, got {self.quality}")


@dataclass
class SplitConfig:
    """Cut a catalog in two, for training and for validation, so that nothing is in both.

    Example: python scripts/webvid.py split --catalog data/webvid/catalog.parquet --val_size 200 \
    --output data/webvid/split
    Writes OUTPUT/train.parquet and OUTPUT/val.parquet, catalogs themselves, of the rows with status ok. With
    --embeddings, videos that look nearly the same, and those that look like them in turn, stay on one side.
    """

    catalog: Path = Path("catalog.parquet")  # From `webvid.py catalog`
    val_size: int = 200  # Videos for validation
    embeddings: Path | None = None  # From `webvid.py embed`; without them near duplicates are not known
    near_duplicate: float = 0.95  # Cosine from which on two videos count as nearly the same
    output: Path = Path("split")  # Folder of the two catalogs
    seed: int = 7  # Draws the videos for validation

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _at_least_one(val_size=self.val_size)
        if not 0 < self.near_duplicate <= 1:
            raise ValueError(f"--near_duplicate must be above 0 and at most 1, got {self.near_duplicate}")


@dataclass
class EmbedConfig:
    """Turn every usable video (or its caption) into one vector, for clustering and for finding duplicates.

    Example: python scripts/webvid.py embed --catalog data/webvid/catalog.parquet --vision_backbone_id clip-vit-b \
    --num_frames 8 --output data/webvid/embeddings
    Writes OUTPUT/embeddings.npy, float16 [N, D], and OUTPUT/ids.txt with the id of each row, in the order of the
    catalog; videos that fail are listed in OUTPUT/failed.jsonl. Run it again after a kill, or with a catalog that has
    grown: only what is missing is computed (it is kept in OUTPUT/vectors.sqlite). With --text_encoder the captions are
    embedded, not the videos.
    """

    catalog: Path = Path("catalog.parquet")  # From `webvid.py catalog`; its rows with status ok are embedded
    vision_backbone_id: str = "clip-vit-b"  # A vector is the mean of this backbone's features over patches and frames
    text_encoder: str = ""  # Embed captions instead: a Transformers model, as a local folder or a hub name
    pretrained_backbones: bool = True  # false: random weights from the model's configuration, nothing is downloaded
    num_frames: int = 8  # Frames of each video
    sampler: str = "uniform"  # Which frames; `python -m prismatic list sampler`
    image_resize_strategy: str = "resize-naive"  # How frames are made square
    output: Path = Path("embeddings")  # Folder of the vectors
    retry_failed: bool = False  # Try the videos again that failed before
    device: str = "auto"  # auto, cpu, cuda
    precision: str = "fp32"  # Of the backbone: fp32, bf16
    seed: int = 7  # Of random weights, and of samplers that draw
    num_workers: int = 2  # Processes that decode; with --engine ray, those of each Ray task
    timeout: float = 60.0  # Seconds after which the decoding of a video counts as failed
    engine: str = "local"  # local: this machine; ray: a Ray Data pipeline, with the same output
    address: str = ""  # With --engine ray: the cluster (auto, or HOST:PORT); empty starts one on this machine

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _at_least_one(num_frames=self.num_frames, num_workers=self.num_workers, timeout=self.timeout)
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        _one_of("precision", self.precision, ("fp32", "bf16"))
