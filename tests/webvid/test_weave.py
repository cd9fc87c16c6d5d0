"""`webvid.py weave`: rows that training reads, their frame budget, and frames of a folder taken evenly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from prismatic.conf.webvid import CatalogConfig, ClusterConfig, WeaveConfig
from prismatic.data.annotations import load_records
from prismatic.data.media_paths import MediaRoot
from prismatic.data.weave import split_frames
from prismatic.webvid.catalog import SCHEMA, catalog
from prismatic.webvid.cluster import cluster
from prismatic.webvid.weave import read_frame_folder, weave
from tests.webvid.videos import write_video


def _catalog(folder: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    rows = [
        {"id": f"v{i}", "path": f"p/v{i}.mp4", "caption": f"cap{i}", "status": "missing" if i in bad else "ok"}
        for i in range(count)
    ]
    path = folder / "catalog.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def _clusters(folder: Path, count: int, size: int, name: str = "clusters.json", shift: int = 0) -> Path:
    path = folder / name
    rows = [{"video_id": f"v{i}", "caption": "", "cluster": str((i + shift) // size)} for i in range(count)]
    path.write_text(json.dumps(rows))
    return path


def _cfg(folder: Path, count: int, size: int, **values: Any) -> WeaveConfig:
    fixed = {"clusters": _clusters(folder, count, size), "catalog": _catalog(folder, count)}
    return WeaveConfig(**{**fixed, "output": folder / "woven.json", **values})


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def test_joined_rows(tmp_path: Path) -> None:
    told = weave(_cfg(tmp_path, 12, 4))
    rows = _read(tmp_path / "woven.json")
    assert len(rows) == 3
    for row in rows:
        assert list(row) == ["id", "videos", "num_frames_per_video", "conversations"]
        ids = row["id"].split(", ")
        assert len({int(i[1:]) // 4 for i in ids}) == 1
        assert row["videos"] == [f"p/{i}.mp4" for i in ids]
        assert row["num_frames_per_video"] == 4
        question, answer = row["conversations"]
        assert question == {"from": "human", "value": "<video>\n" * 4 + "Describe what is happening in the video."}
        assert answer == {"from": "gpt", "value": ". ".join(f"cap{i[1:]}" for i in ids) + "."}
    assert "3 examples (joined), 16 frames each: 4 videos of 4 frames" in told


def test_training_reads_them(tmp_path: Path) -> None:
    weave(_cfg(tmp_path, 8, 2, output=tmp_path / "woven.jsonl"))
    records = load_records(tmp_path / "woven.jsonl", tmp_path)
    assert len(records) == 4
    assert [m.num_frames for m in records[0].media] == [8, 8]
    assert records[0].media[0].paths[0].startswith(str(tmp_path / "p/v"))


def test_frames_that_do_not_divide(tmp_path: Path) -> None:
    assert split_frames(16, 3) == [6, 5, 5]
    told = weave(_cfg(tmp_path, 6, 3))
    assert "3 videos of 6 + 5 + 5 frames" in told
    assert _read(tmp_path / "woven.json")[0]["num_frames_per_video"] == [6, 5, 5]
    with pytest.raises(ValueError, match="--total_frames 2 leaves a video without a frame"):
        weave(_cfg(tmp_path, 6, 3, total_frames=2))


def test_seeds_and_epochs(tmp_path: Path) -> None:
    cfg = _cfg(tmp_path, 40, 4, epochs=2)
    weave(cfg)
    files = [tmp_path / "woven_epoch0.json", tmp_path / "woven_epoch1.json"]
    first, second = (file.read_bytes() for file in files)
    assert first != second
    assert {frozenset(r["id"].split(", ")) for r in _read(files[0])} == {
        frozenset(r["id"].split(", ")) for r in _read(files[1])
    }
    weave(cfg)
    assert files[0].read_bytes() == first
    cfg.epochs = 1
    weave(cfg)
    assert (tmp_path / "woven.json").read_bytes() == first
    cfg.seed = 8
    weave(cfg)
    assert (tmp_path / "woven.json").read_bytes() != first


def test_a_clustering_of_its_own_for_each_epoch(tmp_path: Path) -> None:
    both = [_clusters(tmp_path, 12, 2, "a.json"), _clusters(tmp_path, 12, 2, "b.json", shift=1)]
    weave(_cfg(tmp_path, 12, 2, clusters=both, epochs=3))
    groups = [
        {frozenset(r["id"].split(", ")) for r in _read(tmp_path / f"woven_epoch{epoch}.json")} for epoch in range(3)
    ]
    assert groups[0] == groups[2] != groups[1]


def test_prompt_and_form(tmp_path: Path) -> None:
    weave(_cfg(tmp_path, 4, 2, form="ordered", prompt="What happens?"))
    question, answer = _read(tmp_path / "woven.json")[0]["conversations"]
    assert question["value"] == "<video>\n<video>\nWhat happens?"
    assert answer["value"].startswith("First, cap")


def test_how_many_captions_give_no_key_is_told(tmp_path: Path) -> None:
    assert "2 of them have captions that odd-one-out cannot ask about" in weave(
        _cfg(tmp_path, 4, 2, form="odd-one-out")
    )
    assert "of them" not in weave(_cfg(tmp_path, 4, 2, form="order-question"))


def _frames(folder: Path, count: int, manifest: dict[str, Any] | None = None) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (4, 4)).save(folder / f"{i:04d}.png")
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))


def test_frames_are_taken_evenly_and_never_the_first_ones(tmp_path: Path) -> None:
    for i in range(4):
        _frames(tmp_path / f"frames/v{i}", 16, {"indices": list(range(0, 160, 10)), "num_frames": 160})
    weave(_cfg(tmp_path, 4, 4, frames=tmp_path / "frames", total_frames=8))
    (row,) = _read(tmp_path / "woven.json")
    ids = row["id"].split(", ")
    assert row["frames"] == [f"{i}/{name}.png" for i in ids for name in ("0000", "0015")]
    assert row["conversations"][0]["value"].startswith("<video>\nDescribe")
    (record,) = load_records(tmp_path / "woven.json", tmp_path / "frames")
    assert [(m.kind, len(m.paths)) for m in record.media] == [("frames", 8)]


def test_frame_folders(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/0000.ppm").write_bytes(b"P6 1 1 255\n\0\0\0")
    assert read_frame_folder(MediaRoot(tmp_path), "raw").uniform(1) == ["raw/0000.ppm"]
    _frames(tmp_path / "a", 12)
    folder = read_frame_folder(MediaRoot(tmp_path), "a")
    assert folder.uniform(4) == ["a/0000.png", "a/0003.png", "a/0007.png", "a/0011.png"]
    assert folder.uniform(1) == ["a/0000.png"]
    _frames(tmp_path / "b", 2)
    assert read_frame_folder(MediaRoot(tmp_path), "b").uniform(4) == ["b/0000.png"] * 3 + ["b/0001.png"]
    _frames(tmp_path / "c", 3, {"indices": [0, 1]})
    with pytest.raises(ValueError, match="lists 2 frames, the folder holds 3"):
        read_frame_folder(MediaRoot(tmp_path), "c")
    _frames(tmp_path / "d", 1, {"frames": []})
    with pytest.raises(ValueError, match="does not list the indices"):
        read_frame_folder(MediaRoot(tmp_path), "d")
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match=r"holds no picture"):
        read_frame_folder(MediaRoot(tmp_path), "e")
    with pytest.raises(ValueError, match="is missing"):
        weave(_cfg(tmp_path, 2, 2, frames=tmp_path / "nowhere"))


def test_bad_input(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"form": "joint"}, "did you mean 'joined'"),
        ({"output": tmp_path / "woven.txt"}, "--output must end in .json or .jsonl"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"media_root": tmp_path / "other"}, "--media_root .* does not hold the catalog's videos"),
        ({"catalog": _catalog(tmp_path, 4, bad=(1,))}, "1 of its videos are not usable .* the first: v1"),
        ({"clusters": tmp_path / "gone.json"}, r"--clusters .*gone.json: no such file"),
    ]
    for values, said in cases:
        cfg = _cfg(tmp_path, 4, 2)
        if "catalog" in values:
            _catalog(tmp_path, 4, bad=(1,))
        for name, value in values.items():
            setattr(cfg, name, value)
        with pytest.raises(ValueError, match=said):
            weave(cfg)
        _catalog(tmp_path, 4)
    for text, said in (("[]", "is empty"), ('[{"id": 1}]', "row 1 lacks video_id or cluster"), ("[", "not JSON")):
        cfg = _cfg(tmp_path, 4, 2)
        (tmp_path / "clusters.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            weave(cfg)
    assert not (tmp_path / "woven.json").exists()


def test_from_videos_to_examples(tmp_path: Path) -> None:
    """catalog, cluster and weave on real files; paths relative to a folder above the videos."""
    for i in range(4):
        write_video(tmp_path / f"set/videos/{i}.mp4", shade=40 * i)
    (tmp_path / "set/captions.jsonl").write_text("".join(f'{{"id": "{i}", "caption": "c{i}"}}\n' for i in range(4)))
    table, groups = tmp_path / "set/catalog.parquet", tmp_path / "set/clusters.json"
    catalog(CatalogConfig(videos=tmp_path / "set/videos", captions=tmp_path / "set/captions.jsonl", output=table))
    cluster(ClusterConfig(catalog=table, videos_per_cluster=2, output=groups))
    woven = tmp_path / "set/woven.json"
    weave(WeaveConfig(clusters=groups, catalog=table, media_root=tmp_path / "set", output=woven))
    records = load_records(woven, tmp_path / "set")
    assert len(records) == 2
    for record in records:
        assert all(Path(m.paths[0]).is_file() for m in record.media)
        assert len(record.media) == 2
