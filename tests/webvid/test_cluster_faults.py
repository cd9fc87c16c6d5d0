"""Vectors as they come: damaged, equal, too few. Every method gives whole clusters, or one line that says why not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from threadpoolctl import threadpool_limits

from prismatic.conf.webvid import ClusterConfig
from prismatic.webvid.catalog import SCHEMA
from prismatic.webvid.cluster import METHODS, cluster

N, DIM, SIZE = 61, 24, 4
RNG = np.random.default_rng(3)
NORMAL = RNG.standard_normal((N, DIM))
SOUND = {
    "zero rows": np.where(np.arange(N)[:, None] % 3 == 0, 0, NORMAL),
    "all zero": np.zeros((N, DIM)),
    "twins": NORMAL[np.arange(N) // 2],
    "identical": np.tile(NORMAL[:1], (N, 1)),
    "opposite": np.where(np.arange(N)[:, None] % 2 == 0, 1, -1) * NORMAL[:1],
    "tiny": NORMAL * 1e-7,
    "huge": NORMAL * 15000,
    "one dimension": NORMAL[:, :1],
}
BROKEN = {"nan": np.nan, "infinite": np.inf, "minus infinite": -np.inf}


def _cfg(root: Path, vectors: np.ndarray, method: str, caption: str = "a clip of number {}") -> ClusterConfig:
    ids = [f"v{i:02d}" for i in range(len(vectors))]
    rows = [{"id": i, "path": f"{i}.mp4", "caption": caption.format(i), "status": "ok"} for i in ids]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), root / "c.parquet")
    (root / "e").mkdir(exist_ok=True)
    np.save(root / "e/embeddings.npy", vectors.astype(np.float16))
    (root / "e/ids.txt").write_text("".join(f"{i}\n" for i in ids))
    data = {"catalog": root / "c.parquet", "embeddings": root / "e", "output": root / "cl.json"}
    return ClusterConfig(**data, videos_per_cluster=SIZE, method=method)


@pytest.mark.parametrize("method", METHODS.names())
@pytest.mark.parametrize("kind", SOUND)
def test_odd_vectors_make_whole_clusters(kind: str, method: str, tmp_path: Path) -> None:
    cfg = _cfg(tmp_path, SOUND[kind], method)
    told = cluster(cfg)
    assert "nan" not in told and f"left out, {N} mod {SIZE} = 1: v" in told
    rows = json.loads(cfg.output.read_text())
    assert set(Counter(row["cluster"] for row in rows).values()) == {SIZE}
    assert len({row["video_id"] for row in rows}) == len(rows) == N - N % SIZE
    first = cfg.output.read_bytes()
    cfg.output.unlink()
    with threadpool_limits(1):
        cluster(cfg)
    assert cfg.output.read_bytes() == first


@pytest.mark.parametrize("method", ["visual", "hybrid", "diverse", "hard"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_vector_that_is_not_finite_is_named(kind: str, method: str, tmp_path: Path) -> None:
    vectors = NORMAL.copy()
    vectors[17, 5] = BROKEN[kind]
    with pytest.raises(ValueError, match=r"--embeddings: the vector of video 'v17' \(row 17\) is not finite"):
        cluster(_cfg(tmp_path, vectors, method))
    assert not (tmp_path / "cl.json").exists()


@pytest.mark.parametrize("method", METHODS.names())
def test_exactly_one_cluster_and_too_few_for_one(method: str, tmp_path: Path) -> None:
    cfg = _cfg(tmp_path, NORMAL[:SIZE], method)
    assert "1 clusters of exactly 4 from 4 videos" in cluster(cfg)
    assert sorted(row["video_id"] for row in json.loads(cfg.output.read_text())) == ["v00", "v01", "v02", "v03"]
    with pytest.raises(ValueError, match="--videos_per_cluster 4 is more than the 3 usable videos"):
        cluster(_cfg(tmp_path, NORMAL[: SIZE - 1], method))


@pytest.mark.parametrize("method", ["caption", "hybrid", "hard"])
@pytest.mark.parametrize("caption", ["...", "the same for all", "word " * 2000 + "{}"])
def test_odd_captions_make_whole_clusters(method: str, caption: str, tmp_path: Path) -> None:
    cfg = _cfg(tmp_path, NORMAL, method, caption)
    assert "nan" not in cluster(cfg)
    assert set(Counter(row["cluster"] for row in json.loads(cfg.output.read_text())).values()) == {SIZE}
