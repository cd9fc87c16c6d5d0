"""`webvid.py cluster`: the file, who takes part, and the remainder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from prismatic.conf.webvid import ClusterConfig
from prismatic.webvid.catalog import SCHEMA
from prismatic.webvid.cluster import cluster


def _catalog(path: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    rows = [
        {"id": f"v{i}", "path": f"v{i}.mp4", "caption": f"caption {i}", "status": "broken: x" if i in broken else "ok"}
        for i in range(count)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def _embeddings(folder: Path, ids: list[str], dim: int = 8) -> Path:
    folder.mkdir()
    matrix = np.random.default_rng(0).standard_normal((len(ids), dim)).astype(np.float16)
    np.save(folder / "embeddings.npy", matrix)
    (folder / "ids.txt").write_text("".join(f"{i}\n" for i in ids))
    return folder


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def test_random_clusters_of_a_catalog(tmp_path: Path) -> None:
    out = tmp_path / "clusters.json"
    cfg = ClusterConfig(catalog=_catalog(tmp_path / "c.parquet", 23, broken=(3, 5)), videos_per_cluster=4, output=out)
    told = cluster(cfg)
    rows = _read(out)
    assert [list(row) for row in rows] == [["video_id", "caption", "cluster"]] * 20
    assert Counter(row["cluster"] for row in rows) == {str(i): 4 for i in range(5)}
    assert len({row["video_id"] for row in rows}) == 20
    assert not {"v3", "v5"} & {row["video_id"] for row in rows}
    assert all(row["caption"] == f"caption {row['video_id'][1:]}" for row in rows)
    assert "5 clusters of exactly 4 from 21 videos (random)" in told
    left_out = ({f"v{i}" for i in range(23)} - {"v3", "v5"} - {row["video_id"] for row in rows}).pop()
    assert told.endswith(f"left out, 21 mod 4 = 1: {left_out}")
    before = out.read_bytes()
    cluster(cfg)
    assert out.read_bytes() == before
    cfg.seed = 8
    cluster(cfg)
    assert out.read_bytes() != before


@pytest.mark.parametrize("method", ["random", "visual"])
def test_several_epochs_are_different_clusterings(tmp_path: Path, method: str) -> None:
    embeddings = _embeddings(tmp_path / "e", [f"v{i}" for i in range(64)])
    cfg = ClusterConfig(
        embeddings=embeddings, videos_per_cluster=2, epochs=3, method=method, output=tmp_path / "c.json"
    )
    told = cluster(cfg)
    files = [tmp_path / f"c_epoch{i}.json" for i in range(3)]
    assert all(str(file) in told for file in files)
    assert len({file.read_bytes() for file in files}) == 3


def test_visual_clusters_take_embeddings_and_captions_of_the_catalog(tmp_path: Path) -> None:
    ids = [f"v{i}" for i in range(14)]
    cfg = ClusterConfig(
        catalog=_catalog(tmp_path / "c.parquet", 16, broken=(2,)),
        embeddings=_embeddings(tmp_path / "e", [*ids, "unknown"]),
        videos_per_cluster=4,
        method="visual",
        output=tmp_path / "clusters.json",
    )
    told = cluster(cfg)
    rows = _read(tmp_path / "clusters.json")
    assert len(rows) == 12
    assert {row["video_id"] for row in rows} <= set(ids) - {"v2"}
    assert all(row["caption"] == f"caption {row['video_id'][1:]}" for row in rows)
    assert "from 13 videos (visual)" in told
    assert "cohesion" in told
    assert "13 mod 4 = 1" in told


def test_alike_videos_come_together(tmp_path: Path) -> None:
    folder = _embeddings(tmp_path / "e", [f"v{i}" for i in range(40)])
    groups = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 4))
    np.save(folder / "embeddings.npy", np.eye(10, dtype=np.float32)[groups])
    cluster(ClusterConfig(embeddings=folder, method="visual", output=tmp_path / "c.json"))
    found: dict[str, set[int]] = {}
    for row in _read(tmp_path / "c.json"):
        found.setdefault(row["cluster"], set()).add(int(groups[int(row["video_id"][1:])]))
    assert all(len(kinds) == 1 for kinds in found.values())


def test_bad_input(tmp_path: Path) -> None:
    good = _catalog(tmp_path / "c.parquet", 4)
    bad: list[tuple[ClusterConfig, str]] = [
        (ClusterConfig(), "needs --catalog FILE or --embeddings DIR"),
        (ClusterConfig(catalog=good, method="rnadom"), "did you mean 'random'"),
        (ClusterConfig(catalog=good, method="visual"), "needs --embeddings DIR"),
        (ClusterConfig(embeddings=_embeddings(tmp_path / "mute", list("abcd")), method="hard"), "needs captions"),
        (ClusterConfig(catalog=good, caption_weight=1.5), "--caption_weight must be from 0 to 1"),
        (ClusterConfig(catalog=good, videos_per_cluster=5), "--videos_per_cluster 5 is more than the 4 usable videos"),
        (ClusterConfig(catalog=good, videos_per_cluster=0), "--videos_per_cluster must be at least 1"),
        (ClusterConfig(catalog=_catalog(tmp_path / "b.parquet", 2, (0, 1))), "no row has status ok"),
        (ClusterConfig(embeddings=tmp_path), "holds no embeddings.npy"),
        (ClusterConfig(catalog=good, embeddings=_embeddings(tmp_path / "o", ["z"])), "none of its ids"),
        (ClusterConfig(embeddings=_embeddings(tmp_path / "twice", ["a", "a"])), "names a video twice"),
    ]
    for name, matrix in (
        ("int", np.ones((1, 2), int)),
        ("flat", np.ones(2, np.float32)),
        ("rows", np.ones((2, 2), "f4")),
    ):
        folder = _embeddings(tmp_path / name, ["a"])
        np.save(folder / "embeddings.npy", matrix)
        bad.append((ClusterConfig(embeddings=folder), "expected float16 or float32"))
    objects = _embeddings(tmp_path / "objects", ["a"])
    np.save(objects / "embeddings.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    bad.append((ClusterConfig(embeddings=objects), "not a NumPy array"))
    for cfg, said in bad:
        cfg.output = tmp_path / "out.json"
        with pytest.raises(ValueError, match=said):
            cluster(cfg)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("method", ["random", "visual", "caption", "hybrid", "diverse", "hard"])
def test_every_method_fills_clusters_exactly(tmp_path: Path, method: str) -> None:
    cfg = ClusterConfig(
        catalog=_catalog(tmp_path / "c.parquet", 45),
        embeddings=_embeddings(tmp_path / "e", [f"v{i}" for i in range(45)]),
        method=method,
        output=tmp_path / "clusters.json",
    )
    told = cluster(cfg)
    rows = _read(tmp_path / "clusters.json")
    assert Counter(row["cluster"] for row in rows) == {str(i): 4 for i in range(11)}
    assert len({row["video_id"] for row in rows}) == 44
    assert "cohesion in look" in told
    assert ("cohesion in caption" in told) == (method in ("caption", "hybrid", "hard"))
    before = (tmp_path / "clusters.json").read_bytes()
    cluster(cfg)
    assert (tmp_path / "clusters.json").read_bytes() == before


def _said(path: Path, captions: list[str]) -> Path:
    rows = [{"id": f"v{i}", "path": f"v{i}.mp4", "caption": text, "status": "ok"} for i, text in enumerate(captions)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def test_captions_of_the_same_words_come_together(tmp_path: Path) -> None:
    animals = ["otter", "heron", "lynx", "newt", "viper"]
    catalog = _said(
        tmp_path / "c.parquet",
        [f"A {a}, {place * 5 + i}th of all" for place in range(4) for i, a in enumerate(animals)],
    )
    cluster(ClusterConfig(catalog=catalog, method="caption", output=tmp_path / "c.json"))
    found: dict[str, set[str]] = {}
    for row in _read(tmp_path / "c.json"):
        found.setdefault(row["cluster"], set()).add(row["caption"].split()[1])
    assert all(len(kinds) == 1 for kinds in found.values())


def test_caption_embeddings_go_before_words(tmp_path: Path) -> None:
    folder = _embeddings(tmp_path / "t", [f"v{i}" for i in reversed(range(40))])
    groups = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 4))
    np.save(folder / "embeddings.npy", np.eye(10, dtype=np.float16)[groups[::-1]])
    told = cluster(
        ClusterConfig(
            catalog=_catalog(tmp_path / "c.parquet", 40),
            embeddings=_embeddings(tmp_path / "e", [f"v{i}" for i in range(40)]),
            caption_embeddings=folder,
            method="caption",
            output=tmp_path / "c.json",
        )
    )
    found: dict[str, set[int]] = {}
    for row in _read(tmp_path / "c.json"):
        found.setdefault(row["cluster"], set()).add(int(groups[int(row["video_id"][1:])]))
    assert all(len(kinds) == 1 for kinds in found.values())
    assert "cohesion in caption (mean cosine to the cluster's mean): 1.0000" in told
