"""`webvid.py embed`: a vector for every usable video, in the order of the catalog.

Owns what is computed already, what is left, and the files. What a vector is, is the jobs' business.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from prismatic.conf.webvid_media import EmbedConfig
from prismatic.video.sampling import SAMPLERS
from prismatic.video.transforms import RESIZES
from prismatic.webvid.catalog import count_usable, usable_rows, videos_folder
from prismatic.webvid.engine import ENGINES, Job, Workers, cut
from prismatic.webvid.entries import Entry
from prismatic.webvid.extract import FAILED, clear_partial, keep_settings, summary, write_failures
from prismatic.webvid.files import whole_file
from prismatic.webvid.frames import image_spec
from prismatic.webvid.pool import Failure
from prismatic.webvid.vector_store import VectorStore
from prismatic.webvid.vectors import Backbone, CaptionJob, VideoJob

BATCH = 64  # vectors between two commits: no more work than this for each machine is lost by a kill
SETTINGS = "embed.json"


def embed(cfg: EmbedConfig) -> str:
    """Write cfg.output/embeddings.npy and ids.txt, and return a summary. Raises ValueError for unusable input."""
    cfg.validate()
    ENGINES.get(cfg.engine)
    job = _job(cfg)
    total = count_usable(cfg.catalog)
    if not total:
        raise ValueError(f"--catalog {cfg.catalog}: no row has status ok")
    with VectorStore(cfg.output / "vectors.sqlite") as store:
        keep_settings(cfg.output / SETTINGS, _settings(cfg), empty=store.is_empty())
        clear_partial(cfg.output)
        now = _compute(cfg, job, total, store)
        count, dim, failed = _count(cfg.catalog, store)
        if not count:
            raise ValueError(f"none of the {total} videos could be embedded; the first: {next(iter(failed.items()))}")
        _write(cfg.output, cfg.catalog, store, (count, dim))
    write_failures(cfg.output / FAILED, failed)
    return summary(cfg.output, total, now, failed) + f"\n  embeddings.npy float16 [{count}, {dim}], ids.txt"


def _job(cfg: EmbedConfig) -> Job:
    device = _device(cfg.device)
    if cfg.text_encoder:
        return CaptionJob(Backbone(cfg.text_encoder, cfg.pretrained_backbones, device, cfg.precision, cfg.seed))
    SAMPLERS.get(cfg.sampler)
    RESIZES.get(cfg.image_resize_strategy)
    return VideoJob(
        videos=str(videos_folder(cfg.catalog).resolve()),
        backbone=Backbone(cfg.vision_backbone_id, cfg.pretrained_backbones, device, cfg.precision, cfg.seed),
        spec=image_spec(cfg.vision_backbone_id),
        num_frames=cfg.num_frames,
        sampler=cfg.sampler,
        resize_strategy=cfg.image_resize_strategy,
        threads=cfg.num_workers,
    )


def _device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA GPU here; pass --device cpu, or install a CUDA build")
    return "cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu"


def _settings(cfg: EmbedConfig) -> dict[str, object]:
    """What a vector depends on besides its video."""
    shared = {"pretrained": cfg.pretrained_backbones, "precision": cfg.precision, "seed": cfg.seed}
    if cfg.text_encoder:
        return {"text_encoder": cfg.text_encoder, **shared}
    names = ("vision_backbone_id", "num_frames", "sampler", "image_resize_strategy")
    return {**{name: getattr(cfg, name) for name in names}, **shared}


class _Keys:
    """What must be the same for a vector to count: of the file, or of the caption."""

    def __init__(self, cfg: EmbedConfig) -> None:
        self._videos = None if cfg.text_encoder else videos_folder(cfg.catalog)

    def of(self, row: Entry) -> str:
        if self._videos is None:
            return hashlib.blake2b(row.caption.encode(), digest_size=16).hexdigest()
        try:
            stat = os.stat(self._videos / row.path)
        except (OSError, ValueError):  # ValueError: a NUL in it
            return f"{row.path}, gone"
        return f"{row.path}, {stat.st_size} bytes, {stat.st_mtime_ns}"


def _compute(cfg: EmbedConfig, job: Job, total: int, store: VectorStore) -> int:
    """Compute what the store does not know. Returns how many vectors were computed."""
    workers = Workers(cfg.num_workers, cfg.timeout, cfg.address, gpus=int(_device(cfg.device) == "cuda"))
    keys = _Keys(cfg)
    pending: dict[str, str] = {}  # id -> key before the file was read, of clips under way
    now = 0
    with tqdm(total=total, unit="video", desc="embed") as bar:

        def left() -> Iterator[tuple[str, str]]:
            for row in usable_rows(cfg.catalog):
                known, key = store.get(row.id), keys.of(row)
                if known and known[0] == key and not (cfg.retry_failed and isinstance(known[1], Failure)):
                    bar.update()
                    continue
                pending[row.id] = key
                yield row.id, row.caption if cfg.text_encoder else row.path

        for batch, found in ENGINES.get(cfg.engine)(job, cut(left(), BATCH), workers):
            store.put((task[0], pending.pop(task[0]), vector) for task, vector in zip(batch, found, strict=True))
            now += sum(not isinstance(vector, Failure) for vector in found)
            bar.update(len(batch))
    return now


def _outcomes(catalog: Path, store: VectorStore) -> Iterator[tuple[Entry, np.ndarray | Failure]]:
    for row in usable_rows(catalog):
        known = store.get(row.id)
        assert known is not None, row.id
        yield row, known[1]


def _count(catalog: Path, store: VectorStore) -> tuple[int, int, dict[str, str]]:
    """(N, D, id -> reason of the failures)."""
    count, dim = 0, 0
    failed: dict[str, str] = {}
    for row, found in _outcomes(catalog, store):
        if isinstance(found, Failure):
            failed[row.id] = found.reason
        else:
            count, dim = count + 1, len(found)
    return count, dim, failed


def _write(output: Path, catalog: Path, store: VectorStore, shape: tuple[int, int]) -> None:
    """Both files whole or not at all; the matrix never lies in memory."""
    final, partial = output / "embeddings.npy", output / f".embeddings.{os.getpid()}.partial.npy"
    try:
        with whole_file(output / "ids.txt") as ids:
            matrix = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            place = 0
            for row, found in _outcomes(catalog, store):
                if isinstance(found, Failure):
                    continue
                matrix[place] = found
                ids.write(f"{row.id}\n")
                place += 1
            matrix.flush()
            del matrix
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
