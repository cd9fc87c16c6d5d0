"""One configuration per subcommand of `scripts/webvid.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Union

ClusterFiles = Union[Path, list[Path]]  # noqa: UP007  draccus decodes typing.Union, not X | Y, of a list


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value >= 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")


@dataclass
class CatalogConfig:
    """List every video with its caption and the facts of its container, in one Parquet file.

    Example: python scripts/webvid.py catalog --videos data/webvid/videos --captions data/webvid/results.csv \
    --output data/webvid/catalog.parquet
    Nothing is dropped: `status` is ok, or says what is wrong (missing, broken, duplicate, no caption). Run it again
    after adding videos or captions: only new and changed files are opened. Memory does not grow with the number of
    videos.
    """

    videos: Path = Path("videos")  # Folder of the videos, at any depth; paths in the catalog are relative to it
    captions: Path | None = None  # CSV, JSON, JSONL, Parquet (or a pattern); none: a .txt beside each video holds its
    output: Path = Path("catalog.parquet")  # The catalog; what was probed is kept beside it in OUTPUT.probed.sqlite
    id_column: str | None = None  # Column of the ids; default: videoid, video_id or id, or else the file's name
    path_column: str | None = None  # Column of the files; default: path, video, file, ..., else by page_dir and videoid
    caption_column: str | None = None  # Column of the captions; default: name, caption, text or description
    num_workers: int = 2  # Processes that open files; with --engine ray, those of each Ray task
    timeout: float = 60.0  # Seconds after which a file that does not open counts as broken
    engine: str = "local"  # local: this machine; ray: a Ray Data pipeline, with the same output
    address: str = ""  # With --engine ray: the cluster (auto, or HOST:PORT); empty starts one on this machine

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _positive(num_workers=self.num_workers, timeout=self.timeout)
        if self.output.suffix != ".parquet":
            raise ValueError(f"--output must end in .parquet, got '{self.output}'")


@dataclass
class ClusterConfig:
    """Put the videos into clusters of exactly the same size.

    Example: python scripts/webvid.py cluster --catalog data/webvid/catalog.parquet --videos_per_cluster 4 \
    --method random --output data/webvid/clusters.json
    Videos whose status in the catalog is not ok take no part. When their number is not a multiple of
    --videos_per_cluster, the remainder (fewer than one cluster) is left out and listed: random ones for random and
    diverse, for the others the videos least like the mean of all. Time and memory grow with the number of videos N
    (docs/performance.md). It takes 3 N D bytes beside the embeddings.
    """

    catalog: Path | None = None  # From `webvid.py catalog`; gives ids and captions. Not needed with --embeddings
    embeddings: Path | None = None  # Folder with embeddings.npy [N, D] and ids.txt; how the videos look
    caption_embeddings: Path | None = None  # The same of the captions; default: by the words of the catalog's captions
    caption_weight: float = 0.5  # For hybrid: share of the captions, 0 (looks alone) to 1
    videos_per_cluster: int = 4  # Size of every cluster
    method: str = (
        "random"  # random; visual, caption or hybrid: alike in these; diverse; hard: near in look, far in caption
    )
    output: Path = Path("clusters.json")  # [{"video_id", "caption", "cluster"}]
    epochs: int = 1  # Above 1: as many different clusterings, OUTPUT_epoch0.json, OUTPUT_epoch1.json, ...
    seed: int = 7  # The same seed gives the same clusters, whatever the number of threads

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _positive(videos_per_cluster=self.videos_per_cluster, epochs=self.epochs)
        if self.catalog is None and self.embeddings is None:
            raise ValueError("cluster needs --catalog FILE or --embeddings DIR")
        if not 0 <= self.caption_weight <= 1:
            raise ValueError(f"--caption_weight must be from 0 to 1, got {self.caption_weight}")


@dataclass
class WeaveConfig:
    """Write an annotation file whose examples are several videos each.

    Example: python scripts/webvid.py weave --clusters data/webvid/clusters.json --catalog data/webvid/catalog.parquet \
    --total_frames 16 --form joined --output data/webvid/woven.json
    Each cluster becomes one example of --total_frames frames: T/L of each of its L videos, or where L does not divide
    T, one more of the first T mod L. Train on it with
    --dataset.finetune_stage_components '["webvid/woven.json", "webvid/videos"]'.
    """

    clusters: ClusterFiles = Path("clusters.json")  # From `webvid.py cluster`; a list in brackets: epochs take turns
    catalog: Path = Path("catalog.parquet")  # From `webvid.py catalog`; gives paths and captions
    frames: Path | None = None  # From `webvid.py extract`, folders or shards: examples name those, not the videos
    media_root: Path | None = None  # Paths are written relative to it; default: the --videos or --frames folder
    total_frames: int = 16  # Frames of an example over all its videos
    form: str = "joined"  # joined, ordered, indexed, timestamped, order-question or odd-one-out
    prompt: str = "Describe what is happening in the video."  # Question of joined, ordered, timestamped
    output: Path = Path("woven.json")  # .json, or .jsonl for one row a line
    epochs: int = 1  # Above 1: as many different weaves, OUTPUT_epoch0.json, OUTPUT_epoch1.json, ...
    seed: int = 7  # Order of the examples and of the videos in each

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _positive(total_frames=self.total_frames, epochs=self.epochs)
        if self.output.suffix not in (".json", ".jsonl"):
            raise ValueError(f"--output must end in .json or .jsonl, got '{self.output}'")
