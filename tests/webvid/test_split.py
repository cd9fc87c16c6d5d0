"""Train and val share no video and no look-alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from prismatic.conf.webvid_media import SplitConfig
from prismatic.webvid.catalog import SCHEMA, read_catalog, with_videos_folder
from prismatic.webvid.split import split


def _catalog(root: Path, count: int) -> Path:
    """A catalog of `count` usable rows and a broken one, made without videos."""
    rows = [{"id": f"{i}", "path": f"{i}.mp4", "caption": f"c{i}", "status": "ok"} for i in range(count)]
    rows.append({"id": "x", "path": "x.mp4", "caption": "", "status": "broken: empty"})
    table = pyarrow.Table.from_pylist(rows, schema=with_videos_folder(SCHEMA, root / "videos", root))
    pyarrow.parquet.write_table(table, root / "c.parquet", row_group_size=7)
    return root / "c.parquet"


def _embeddings(root: Path, matrix: np.ndarray) -> Path:
    np.save(root / "embeddings.npy", matrix.astype(np.float16))
    (root / "ids.txt").write_text("".join(f"{i}\n" for i in range(len(matrix))))
    return root


def _sides(output: Path) -> tuple[list[str], list[str]]:
    return list(read_catalog(output / "train.parquet").ids), list(read_catalog(output / "val.parquet").ids)


def test_by_id(tmp_path: Path) -> None:
    told = split(SplitConfig(catalog=_catalog(tmp_path, 50), val_size=10, output=tmp_path / "out/s"))
    assert "40 videos in train.parquet, 10 in val.parquet" in told and "--embeddings DIR finds them" in told
    train, val = _sides(tmp_path / "out/s")
    assert len(val) == 10 and sorted(train + val, key=int) == [str(i) for i in range(50)]
    assert read_catalog(tmp_path / "out/s/val.parquet").videos.resolve() == tmp_path / "videos"
    split(SplitConfig(catalog=tmp_path / "c.parquet", val_size=10, output=tmp_path / "again"))
    assert (tmp_path / "again/val.parquet").exists() and _sides(tmp_path / "again") == (train, val)
    split(SplitConfig(catalog=tmp_path / "c.parquet", val_size=10, output=tmp_path / "other", seed=8))
    assert _sides(tmp_path / "other") != (train, val)


def test_chains_of_look_alikes_stay_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Twenty chains of three: ends of a chain are linked by its middle alone.
    ends = np.eye(40, 64)[rng.permutation(40)].reshape(20, 2, 64)
    matrix = np.stack([ends[:, 0], (ends[:, 0] + ends[:, 1]) / 2, ends[:, 1]], axis=1).reshape(60, 64)
    cfg = SplitConfig(
        catalog=_catalog(tmp_path, 60),
        val_size=13,
        embeddings=_embeddings(tmp_path, 30 * matrix),
        near_duplicate=0.7,
        output=tmp_path / "s",
    )
    told = split(cfg)
    train, val = _sides(tmp_path / "s")
    assert len(val) == 12 and len(train) == 48  # a fifth chain would not have fitted
    assert {int(i) // 3 for i in val}.isdisjoint({int(i) // 3 for i in train})
    assert "8 near duplicates" in told
    cfg.near_duplicate, cfg.output = 0.72, tmp_path / "t"
    split(cfg)
    assert len(_sides(tmp_path / "t")[1]) == 13


def test_a_threshold_that_links_everything_is_refused(tmp_path: Path) -> None:
    matrix = np.ones((5000, 4)) + np.random.default_rng(0).normal(0, 0.01, (5000, 4))
    cfg = SplitConfig(
        catalog=_catalog(tmp_path, 5000), val_size=2, embeddings=_embeddings(tmp_path, matrix), near_duplicate=0.5
    )
    with pytest.raises(ValueError, match=r"--near_duplicate 0.5 links 4097 videos to 256; raise it"):
        split(cfg)


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--val_size 5 leaves nothing to train on of 5 usable videos"):
        split(SplitConfig(catalog=_catalog(tmp_path, 5), val_size=5, output=tmp_path / "s"))
    with pytest.raises(ValueError, match="--near_duplicate must be above 0"):
        split(SplitConfig(near_duplicate=0))
