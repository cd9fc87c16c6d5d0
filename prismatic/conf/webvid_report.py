"""Configuration of `scripts/webvid.py report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class ReportConfig:
    """Write a page that shows clusters and woven examples.

    Example: python scripts/webvid.py report --clusters data/webvid/clusters.json --embeddings data/webvid/embeddings \
    --catalog data/webvid/catalog.parquet --output data/webvid/report.html
    Sizes and cohesion of the clusters beside chance, a map, the best, median and worst clusters as contact sheets,
    woven examples as a model sees them, and the skipped files by reason. The page opens offline and holds its own
    pictures; they are also written as PNG into the folder OUTPUT's name with `_files`, beside the rows of the woven
    examples and skipped.jsonl with the reason of each video that is left out. It stays below 20 MB.
    """

    clusters: Path = Path("clusters.json")  # From `webvid.py cluster`
    catalog: Path = Path("catalog.parquet")  # From `webvid.py catalog`; gives paths, captions and what is wrong
    embeddings: Path | None = None  # From `webvid.py embed`; without it there are no cohesion and no map
    frames: Path | None = None  # Folder of extracted frames: woven examples are made of those, not of the videos
    total_frames: int = 16  # Frames of a woven example over all its videos
    form: str = "joined"  # Question and answer of the woven examples
    prompt: str = "Describe what is happening in the video."  # The question of forms that ask a fixed one
    output: Path = Path("report.html")  # The page
    seed: int = 7  # Which videos the map shows, and which examples are woven

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        if self.total_frames < 1:
            raise ValueError(f"--total_frames must be at least 1, got {self.total_frames}")
        if self.output.suffix not in (".html", ".htm"):
            raise ValueError(f"--output must end in .html, got '{self.output}'")
