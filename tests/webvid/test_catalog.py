"""The catalog: captions and files find each other, nothing is dropped, and only new work is done again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from prismatic.conf.webvid import CatalogConfig
from prismatic.webvid import probe
from prismatic.webvid.catalog import catalog, read_catalog
from tests.webvid.videos import write_video

COLUMNS = ["id", "path", "caption", "duration", "num_frames", "fps", "width", "height", "status"]
WEBVID = ("videoid", "contentUrl", "duration", "page_dir", "name")


def _csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def test_webvid_layout(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/p1/10.mp4", frames=10)
    write_video(tmp_path / "videos/p2/11.MKV", frames=5, shade=50)
    table = _csv(
        tmp_path / "results.csv",
        WEBVID,
        [("10", "u", "PT2S", "p1", "A cat, asleep"), ("11", "u", "PT1S", "p2", "A  dog")],
    )
    told = catalog(CatalogConfig(videos=tmp_path / "videos", captions=table, output=tmp_path / "out/c.parquet"))
    assert "2 rows: 2 ok; 2 files opened, 0 known" in told
    rows = _rows(tmp_path / "out/c.parquet")
    assert list(rows[0]) == COLUMNS
    first = {"id": "10", "path": "p1/10.mp4", "caption": "A cat, asleep", "duration": pytest.approx(2.0)}
    assert rows[0] == {**first, "num_frames": 10, "fps": pytest.approx(5.0), "width": 48, "height": 32, "status": "ok"}
    assert (rows[1]["path"], rows[1]["caption"]) == ("p2/11.MKV", "A dog")
    assert read_catalog(tmp_path / "out/c.parquet").videos.resolve() == (tmp_path / "videos").resolve()


def test_the_folder_above_the_videos_works_too(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/p1/10.mp4")
    table = _csv(tmp_path / "r.csv", WEBVID, [("10", "u", "", "p1", "x")])
    catalog(CatalogConfig(videos=tmp_path, captions=table, output=tmp_path / "c.parquet"))
    assert _rows(tmp_path / "c.parquet")[0]["path"] == "videos/p1/10.mp4"


def test_videos_that_left_the_folders_of_the_table_are_found_by_their_name(tmp_path: Path) -> None:
    for i, name in enumerate(("10.mp4", "train/11.mp4", "a/b/12.mp4", "x/b/12.mp4", "p1/13.mp4", "p2/13.mp4")):
        write_video(tmp_path / "v" / name, shade=i * 30)
    rows = [("10", "u", "", "p1", "ten"), ("11", "u", "", "p9", "eleven"), ("12", "u", "", "x/b", "twelve")]
    rows += [("13", "u", "", "p3", "two files may be meant"), ("10", "u", "", "p2", "again")]
    table = _csv(tmp_path / "r.csv", WEBVID, rows)
    catalog(CatalogConfig(videos=tmp_path / "v", captions=table, output=tmp_path / "c.parquet"))
    found = [(r["path"], r["status"]) for r in _rows(tmp_path / "c.parquet")[:5]]
    assert found[:3] == [("10.mp4", "ok"), ("train/11.mp4", "ok"), ("x/b/12.mp4", "ok")]
    assert found[3:] == [("", "missing"), ("10.mp4", "duplicate of 10")]


def test_what_is_wrong_is_marked_and_kept(tmp_path: Path) -> None:
    videos = tmp_path / "v"
    write_video(videos / "good.mp4")
    write_video(videos / "same.mp4")
    write_video(videos / "silent.mp4", shade=10)
    write_video(videos / "cut.mp4", shade=20, frames=20)
    data = (videos / "cut.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(data[: len(data) // 2])  # its index stood at the end
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("this is no video")
    (videos / "folder.mp4").mkdir()
    (videos / "notes.txt").write_text("ignored")
    names = ["good", "same", "gone", "cut", "empty", "text", "folder"]
    rows = [(n, f"{n}.mp4", f"about {n}") for n in names]
    rows += [("good", "good.mp4", "again"), ("bare", "silent.mp4", "")]
    table = _csv(tmp_path / "t.csv", ("id", "path", "caption"), rows)
    told = catalog(CatalogConfig(videos=videos, captions=table, output=tmp_path / "c.parquet"))
    status = {(row["id"], row["caption"]): row["status"] for row in _rows(tmp_path / "c.parquet")}
    assert status["good", "about good"] == "ok"
    assert status["same", "about same"] == "duplicate of good"
    assert status["good", "again"] == "duplicate of good"
    assert status["gone", "about gone"] == "missing"
    assert status["bare", ""] == "no caption"
    assert all(status[n, f"about {n}"].startswith("broken: ") for n in ("cut", "empty", "text", "folder"))
    assert "empty" in status["empty", "about empty"]
    assert len(status) == len(rows)
    assert "4 broken, 2 duplicate, 1 ok, 1 missing, 1 no caption" in told
    assert read_catalog(tmp_path / "c.parquet").usable().tolist() == [0]


def test_files_that_no_caption_names_are_listed(tmp_path: Path) -> None:
    for i, name in enumerate(("a/x.mp4", "b/x.mp4", "y.mp4")):
        write_video(tmp_path / "v" / name, shade=i * 50)
    table = tmp_path / "t.jsonl"
    table.write_text('{"video": "y.mp4", "text": "why"}\n\n')
    catalog(CatalogConfig(videos=tmp_path / "v", captions=table, output=tmp_path / "c.parquet"))
    found = [(r["id"], r["path"], r["status"]) for r in _rows(tmp_path / "c.parquet")]
    assert found == [("y", "y.mp4", "ok"), ("x", "a/x.mp4", "no caption"), ("b/x", "b/x.mp4", "no caption")]


def test_a_caption_file_beside_each_video(tmp_path: Path) -> None:
    write_video(tmp_path / "v/x.mp4")
    (tmp_path / "v/x.txt").write_text("A cat\n sits.\n")
    catalog(CatalogConfig(videos=tmp_path / "v", output=tmp_path / "c.parquet"))
    assert [(r["id"], r["caption"], r["status"]) for r in _rows(tmp_path / "c.parquet")] == [("x", "A cat sits.", "ok")]


def test_a_second_run_opens_only_what_is_new_or_changed(tmp_path: Path) -> None:
    cfg = CatalogConfig(videos=tmp_path / "v", captions=tmp_path / "t.json", output=tmp_path / "c.parquet")
    (tmp_path / "t.json").write_text(json.dumps([{"id": i, "caption": f"c{i}"} for i in range(4)]))
    for i in range(3):
        write_video(tmp_path / f"v/{i}.mp4", shade=i * 40)
    assert "3 files opened, 0 known" in catalog(cfg)
    first = (tmp_path / "c.parquet").read_bytes()
    assert "0 files opened, 3 known" in catalog(cfg)
    assert (tmp_path / "c.parquet").read_bytes() == first
    write_video(tmp_path / "v/3.mp4", shade=200)
    write_video(tmp_path / "v/0.mp4", shade=0, frames=9)
    assert "2 files opened, 2 known" in catalog(cfg)
    assert [r["num_frames"] for r in _rows(tmp_path / "c.parquet")] == [9, 6, 6, 6]


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BATCH", 2)
    (tmp_path / "t.json").write_text(json.dumps([{"id": str(i), "caption": "c"} for i in range(6)]))
    for i in range(6):
        write_video(tmp_path / f"v/{i}.mp4", shade=i * 40)
    whole = CatalogConfig(videos=tmp_path / "v", captions=tmp_path / "t.json", output=tmp_path / "whole.parquet")
    cut = CatalogConfig(videos=tmp_path / "v", captions=tmp_path / "t.json", output=tmp_path / "cut.parquet")
    catalog(whole)

    put = probe.ProbeStore.put

    def stop(store: probe.ProbeStore, found: Any) -> None:
        put(store, found)
        raise KeyboardInterrupt

    for opened in (2, 4, 6):
        with monkeypatch.context() as patch:
            patch.setattr(probe.ProbeStore, "put", stop)
            with pytest.raises(KeyboardInterrupt):
                catalog(cut)
        assert not (tmp_path / "cut.parquet").exists(), opened
    assert "0 files opened, 6 known" in catalog(cut)
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_link_out_of_the_folder_is_not_followed_into(tmp_path: Path) -> None:
    write_video(tmp_path / "elsewhere/x.mp4")
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v/y.mp4", shade=9)
    (tmp_path / "v/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "v/z.mp4").symlink_to(tmp_path / "elsewhere/x.mp4")
    (tmp_path / "t.json").write_text(json.dumps([{"id": i, "caption": i} for i in ("x", "y", "z")]))
    catalog(CatalogConfig(videos=tmp_path / "v", captions=tmp_path / "t.json", output=tmp_path / "c.parquet"))
    status = {r["id"]: r["status"] for r in _rows(tmp_path / "c.parquet")}
    assert status["y"] == "ok"
    assert status["x"] == "missing"
    assert status["z"] == "broken: a link that leaves the folder of the videos"


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (CatalogConfig(videos=Path("gone")), "--videos .*: no such folder"),
        (CatalogConfig(videos=Path("."), output=Path("c.csv")), "--output must end in .parquet"),
        (CatalogConfig(videos=Path("."), captions=Path("gone.csv")), "gone.csv: no such file"),
        (CatalogConfig(videos=Path(".")), "no video and no caption found"),
        (CatalogConfig(videos=Path("."), num_workers=0), "--num_workers must be at least 1"),
    ],
)
def test_bad_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfg: CatalogConfig, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        catalog(cfg)


def test_what_is_no_catalog_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`webvid.py catalog --output .*` makes one"):
        read_catalog(tmp_path / "gone.parquet")
    (tmp_path / "x.parquet").write_text("text")
    with pytest.raises(ValueError, match="not a catalog"):
        read_catalog(tmp_path / "x.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"id": ["1"]}), tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"not a catalog|no columns"):
        read_catalog(tmp_path / "y.parquet")
