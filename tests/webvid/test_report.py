"""`webvid.py report`: what the page tells, what it shows, and what it does with less or with worse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismatic.conf.webvid import CatalogConfig, ClusterConfig
from prismatic.conf.webvid_report import ReportConfig
from prismatic.webvid.catalog import catalog
from prismatic.webvid.cluster import cluster
from prismatic.webvid.quantised import quantise
from prismatic.webvid.report import report
from prismatic.webvid.report_data import principal_plane
from tests.webvid.videos import write_video

COUNT, SIZE = 26, 2


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 videos of greys whose embeddings follow the grey, three bad files, and clusters of two."""
    root = tmp_path_factory.mktemp("heap")
    for i in range(COUNT):
        write_video(root / f"videos/v{i:02}.mp4", shade=8 * i + 2)
    (root / "videos/empty.mp4").write_bytes(b"")
    (root / "videos/text.mp4").write_bytes(b"no video")
    ids = [f"v{i:02}" for i in range(COUNT)]
    rows = [*((i, f"a grey of {i} & <more>") for i in ids), ("empty", "x"), ("text", "x"), ("gone", "x")]
    (root / "c.csv").write_text("videoid,name\n" + "".join(f"{i},{text}\n" for i, text in rows))
    catalog(CatalogConfig(videos=root / "videos", captions=root / "c.csv", output=root / "c.parquet"))
    (root / "e").mkdir()
    angle = np.linspace(0, 1.5, COUNT)
    np.save(root / "e/embeddings.npy", np.stack([np.cos(angle), np.sin(angle), 0.1 * angle], axis=1).astype(np.float32))
    (root / "e/ids.txt").write_text("".join(f"{i}\n" for i in ids))
    (root / "e/failed.jsonl").write_text(json.dumps({"id": "v99", "reason": "frame 12 of 'x' is damaged"}) + "\n")
    cluster(
        ClusterConfig(
            catalog=root / "c.parquet",
            embeddings=root / "e",
            videos_per_cluster=SIZE,
            method="visual",
            output=root / "clusters.json",
        )
    )
    return root


def _cfg(heap: Path, output: Path, **values: object) -> ReportConfig:
    fixed = {"clusters": heap / "clusters.json", "catalog": heap / "c.parquet", "embeddings": heap / "e"}
    return ReportConfig(**{**fixed, "output": output, **values})  # type: ignore[arg-type]


def test_the_page_shows_clusters_and_woven_examples(heap: Path, tmp_path: Path) -> None:
    told = report(_cfg(heap, tmp_path / "r.html", total_frames=6))
    assert "13 clusters, 9 of them and 3 woven examples shown" in told
    page = (tmp_path / "r.html").read_text()
    # Three frames of each video on the sheets; 6 frames of each woven example; three drawings.
    assert len(re.findall(r'src="data:image/jpeg', page)) == 9 * SIZE * 3 + 3 * 6
    assert len(re.findall(r'src="data:image/png', page)) == 3
    for kind in ("Best", "Median", "Worst"):
        assert f"{kind} clusters" in page
    assert page.count('<span class="worth">cohesion 0.') + page.count('<span class="worth">cohesion 1.') == 9
    assert "a grey of v00 &amp; &lt;more&gt;" in page or "&amp; &lt;more&gt;" in page
    assert "&lt;video&gt;\n&lt;video&gt;\nDescribe what is happening in the video." in page
    assert "http://" not in page
    assert "https://" not in page
    names = sorted(p.name for p in (tmp_path / "r_files").iterdir())
    sheets = [f"{kind}-{i}.png" for kind in ("best", "median", "worst", "woven") for i in (1, 2, 3)]
    assert names == sorted([*sheets, "cohesion.png", "map.png", "sizes.png", "skipped.jsonl", "woven.json"])
    for name in (n for n in names if n.endswith(".png")):
        with Image.open(tmp_path / "r_files" / name) as image:
            image.verify()
    before = (tmp_path / "r.html").read_bytes()
    report(_cfg(heap, tmp_path / "r.html", total_frames=6))
    assert (tmp_path / "r.html").read_bytes() == before


@pytest.mark.parametrize(("size", "kinds"), [(8, "bmw"), (13, "bw"), (26, "b"), (4, "bbmmww")])
def test_few_clusters_are_of_every_kind(size: int, kinds: str, heap: Path, tmp_path: Path) -> None:
    data = {"catalog": heap / "c.parquet", "embeddings": heap / "e"}
    cluster(ClusterConfig(**data, videos_per_cluster=size, method="visual", output=tmp_path / "few.json"))
    report(_cfg(heap, tmp_path / "r.html", clusters=tmp_path / "few.json", total_frames=26))
    sheets = sorted(p.name for p in (tmp_path / "r_files").glob("*-[0-9].png") if not p.name.startswith("woven"))
    assert "".join(name[0] for name in sheets) == kinds


def test_skipped_files_are_counted_by_reason(heap: Path, tmp_path: Path) -> None:
    report(_cfg(heap, tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    table = page[page.index("<h2>Skipped") :]
    rows = re.findall(
        r'number">(\d+)</td>\s*<td class="where">(\w+)</td>\s*<td>(.*?)</td><td class="ids">(.*?)</td>', table
    )
    found = {(where, ids): (int(n), text) for n, where, text, ids in rows}
    assert found["catalog", "gone"] == (1, "missing")
    assert found["catalog", "empty.mp4"] == (1, "broken: the file is empty")
    assert found["catalog", "text.mp4"][1].startswith("broken: ")
    assert str(heap) not in table
    assert found["embeddings", "v99"] == (1, "frame ... of ... is damaged")


def test_without_embeddings(heap: Path, tmp_path: Path) -> None:
    told = report(_cfg(heap, tmp_path / "r.html", embeddings=None))
    assert "13 clusters, 6 of them" in told
    page = (tmp_path / "r.html").read_text()
    assert "Some clusters" in page
    assert "there is no\ncohesion and no map" in page.replace("--embeddings ", "")
    assert not (tmp_path / "r_files/map.png").exists()


def test_a_video_that_has_gone_is_said(heap: Path, tmp_path: Path) -> None:
    rows = [{"video_id": i, "caption": "", "cluster": "0"} for i in ("v00", "gone")]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(rows))
    told = report(_cfg(heap, tmp_path / "r.html", clusters=few, embeddings=None))
    assert "1 videos shown could not be read" in told
    page = (tmp_path / "r.html").read_text()
    assert "gone (missing)" in page
    assert "No cluster has only usable videos" in page


def test_bad_input(heap: Path, tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps([{"video_id": "nobody", "cluster": "0"}]))
    lacking = tmp_path / "lacking.json"
    lacking.write_text(json.dumps([{"video_id": "empty", "cluster": "0"}]))
    empty = tmp_path / "none.json"
    empty.write_text("[]")
    for values, said in (
        ({"clusters": unknown}, "no video 'nobody' in the --catalog"),
        ({"clusters": lacking}, "no vector of 1 videos of --clusters, as of empty"),
        ({"clusters": empty}, "is empty"),
        ({"output": tmp_path / "r.txt"}, "--output must end in .html"),
        ({"total_frames": 0}, "--total_frames must be at least 1"),
        ({"total_frames": 1}, "--total_frames 1 leaves a video without a frame"),
    ):
        with pytest.raises(ValueError, match=said):
            report(_cfg(heap, values.pop("output", tmp_path / "r.html"), **values))


def test_the_plane_shows_the_two_widest_directions() -> None:
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((400, 6)).astype(np.float32) * np.array([0.1, 5, 0.1, 2, 0.1, 0.1], np.float32)
    raw += np.array([0, 0, 20, 0, 0, 0], np.float32)
    vectors = quantise(raw, ["x"] * 400)
    places = principal_plane(vectors, np.arange(400), seed=0)
    assert abs(np.corrcoef(places[:, 0], vectors[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(places[:, 1], vectors[:, 3])[0, 1]) > 0.99
