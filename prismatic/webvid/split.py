"""`webvid.py split`: a catalog cut into train and val, with no video and no look-alike in both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from tqdm import tqdm

from prismatic.conf.webvid_media import SplitConfig
from prismatic.webvid.catalog import ROWS_AT_A_TIME, usable_rows, videos_folder, with_videos_folder
from prismatic.webvid.cluster import read_embeddings
from prismatic.webvid.files import clear_dead, whole_file
from prismatic.webvid.quantised import one_blas_thread
from prismatic.webvid.texts import Texts

CHUNK = 8192  # vectors compared at a time
SEEDS = 256  # videos whose look-alikes are sought in one pass over all vectors, at least
MAX_REACH = 16  # linked videos for each one drawn, above which --near_duplicate is too low to mean a duplicate


def split(cfg: SplitConfig) -> str:
    """Write cfg.output/train.parquet and val.parquet, and return a summary. Raises ValueError for unusable input."""
    cfg.validate()
    ids = Texts.of(row.id for row in usable_rows(cfg.catalog))
    if len(ids) <= cfg.val_size:
        raise ValueError(f"--val_size {cfg.val_size} leaves nothing to train on of {len(ids)} usable videos")
    order = np.random.default_rng(cfg.seed).permutation(len(ids))
    lines: list[str] = []
    if cfg.embeddings is None:
        chosen = set(ids.take(order[: cfg.val_size]))
        lines.append("  near duplicates were not looked for (--embeddings DIR finds them)")
    else:
        chosen, lines = _by_likeness(ids.take(order), cfg)
    _write(cfg, chosen)
    head = f"{cfg.output}: {len(ids) - len(chosen)} videos in train.parquet, {len(chosen)} in val.parquet"
    return "\n".join([head, *lines])


@dataclass
class _Groups:
    """Videos that are linked, by union and find. of: row -> a row of its group."""

    of: dict[int, int]

    def find(self, row: int) -> int:
        """The row that stands for the group of a row."""
        while (up := self.of.setdefault(row, row)) != row:
            self.of[row] = self.of[up]
            row = up
        return row

    def join(self, a: int, b: int) -> None:
        """The lower row stands for both."""
        a, b = sorted((self.find(a), self.find(b)))
        self.of[b] = a

    def members(self) -> dict[int, list[int]]:
        """Row that stands for a group -> its rows in order."""
        found: dict[int, list[int]] = {}
        for row in sorted(self.of):
            found.setdefault(self.find(row), []).append(row)
        return found


@one_blas_thread
def _by_likeness(drawn: Texts, cfg: SplitConfig) -> tuple[set[str], list[str]]:
    """Whole groups of look-alikes in the order drawn, as long as they fit into val_size."""
    assert cfg.embeddings is not None
    ids, matrix = read_embeddings(cfg.embeddings)
    candidates = ids.places(drawn)
    candidates = candidates[candidates >= 0]
    usable = np.zeros(len(ids), bool)
    usable[candidates] = True
    chosen: set[int] = set()
    refused = linked = 0
    start = 0
    while len(chosen) < cfg.val_size and start < len(candidates):
        seeds = candidates[start : start + max(cfg.val_size, SEEDS)].tolist()
        start += len(seeds)
        groups = _linked(matrix, usable, [s for s in seeds if s not in chosen], cfg)
        members = groups.members()
        for seed in seeds:
            group = members[groups.find(seed)] if seed in groups.of else []
            if not group or group[0] in chosen:
                continue
            if len(chosen) == cfg.val_size:
                break
            if len(chosen) + len(group) > cfg.val_size:
                refused += 1
                continue
            chosen.update(group)
            linked += len(group) - 1
    if not chosen:
        raise ValueError(
            f"--near_duplicate {cfg.near_duplicate}: all groups of look-alikes exceed --val_size; raise one"
        )
    lines = [
        f"  {linked} near duplicates (cosine from {cfg.near_duplicate}) are in val with what they look like; {refused} "
        "groups did not fit and stay in train"
    ]
    without = len(drawn) - len(candidates)
    if without:
        lines.append(f"  {without} usable videos have no embedding: they stay in train, unchecked")
    return {ids[row] for row in chosen}, lines


def _linked(matrix: NDArray[np.floating], usable: NDArray[np.bool_], seeds: list[int], cfg: SplitConfig) -> _Groups:
    """Everything that is like a seed, like something that is like a seed, and so on.

    Raises ValueError when that is most of all: the threshold is then no duplicate's.
    """
    groups = _Groups({seed: seed for seed in seeds})
    frontier = list(seeds)
    while frontier:
        found: set[int] = set()
        for near, row in _pairs(matrix, usable, frontier, cfg.near_duplicate):
            if row not in groups.of:
                found.add(row)
            groups.join(near, row)
            if len(groups.of) > MAX_REACH * len(seeds):
                raise ValueError(
                    f"--near_duplicate {cfg.near_duplicate} links {len(groups.of)} videos to {len(seeds)}; raise it"
                )
        frontier = sorted(found)
    return groups


def _pairs(
    matrix: NDArray[np.floating], usable: NDArray[np.bool_], rows: list[int], threshold: float
) -> Iterator[tuple[int, int]]:
    """(one of `rows`, any other usable row) with a cosine from the threshold on."""
    queries = np.array(rows)
    for first in range(0, len(queries), CHUNK):
        asked = queries[first : first + CHUNK]
        left = _unit(matrix[asked])
        for start in tqdm(range(0, len(matrix), CHUNK), unit="piece", desc="near duplicates", leave=False):
            alike = left @ _unit(matrix[start : start + CHUNK]).T >= threshold
            alike &= usable[start : start + CHUNK]
            for i, j in zip(*np.nonzero(alike), strict=True):
                if asked[i] != start + j:
                    yield int(asked[i]), int(start + j)


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows at length 1; a row of zeros stays zero and is like nothing."""
    rows = np.asarray(vectors, np.float32)
    rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return rows / np.maximum(np.sqrt(np.square(rows).sum(axis=1, keepdims=True)), np.float32(1e-6))


def _write(cfg: SplitConfig, chosen: set[str]) -> None:
    """Both catalogs, row group by row group, with all columns."""
    videos = Path(os.path.abspath(videos_folder(cfg.catalog)))
    targets = {name: cfg.output / f"{name}.parquet" for name in ("train", "val")}
    with pyarrow.parquet.ParquetFile(cfg.catalog) as source:
        schema = with_videos_folder(source.schema_arrow, videos, cfg.output)
        for name, target in targets.items():
            clear_dead(target)
            with whole_file(target, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
                for group in source.iter_batches(ROWS_AT_A_TIME):
                    rows = zip(group["id"].to_pylist(), group["status"].to_pylist(), strict=True)
                    keep = [status == "ok" and (row_id in chosen) == (name == "val") for row_id, status in rows]
                    kept = pyarrow.Table.from_batches([group]).filter(pyarrow.array(keep, pyarrow.bool_()))
                    writer.write_table(kept.cast(schema))
