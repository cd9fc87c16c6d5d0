"""The heap's tools open nothing outside the folders they are given, whatever tables, catalogs and shards say."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prismatic.conf.webvid import CatalogConfig, WeaveConfig
from prismatic.conf.webvid_media import EmbedConfig, ExtractConfig
from prismatic.conf.webvid_report import ReportConfig
from prismatic.conf.webvid_rows import QnaConfig
from prismatic.webvid import catalog as catalog_module
from prismatic.webvid.catalog import SCHEMA, catalog, with_videos_folder
from prismatic.webvid.embed import embed
from prismatic.webvid.engine import ENGINES
from prismatic.webvid.extract import extract, read_failures
from prismatic.webvid.pool import Failure
from prismatic.webvid.qna import qna
from prismatic.webvid.report import report
from prismatic.webvid.weave import weave
from tests.audit import watched
from tests.webvid.videos import write_video


def _here(job: Any, batches: Any, _workers: Any) -> Iterator[tuple[Any, Any]]:
    """As the local engine does it, but in this process, where the hook sees what is opened."""

    def read(task: Any) -> Any:
        try:
            return job.read(task)
        except (ValueError, OSError) as error:
            return Failure(str(error))

    for batch in batches:
        yield batch, job.finish(batch, iter([read(task) for task in batch]))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """v/ with a good video and bad links, outside/ with what must not be opened."""
    monkeypatch.setitem(ENGINES._entries, "local", _here)
    write_video(tmp_path / "v/good.mp4")
    write_video(tmp_path / "outside/secret.mp4", shade=99)
    (tmp_path / "outside/frames").mkdir()
    (tmp_path / "outside/frames/0000.png").write_bytes(b"secret")
    (tmp_path / "v/link.mp4").symlink_to(tmp_path / "outside/secret.mp4")
    (tmp_path / "v/linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    (tmp_path / "v/named.mp4").mkdir()
    (tmp_path / "v/named.mp4/0000.png").symlink_to(tmp_path / "outside/frames/0000.png")
    return tmp_path


def _paths(place: Path) -> list[str]:
    outside = place / "outside/secret.mp4"
    return [
        *(
            "../outside/secret.mp4",
            f"{outside}",
            "/etc/passwd",
            "x/../../outside/secret.mp4",
            "./../outside/secret.mp4",
        ),
        *("link.mp4", "linked/secret.mp4", "named.mp4", "good.mp4\0", "..", "C:\\secret.mp4", "\\\\host\\secret.mp4"),
        *("http://127.0.0.1:9/secret.mp4", f"file://{outside}", "s3://bucket/secret.mp4"),
        "../outside/secret.tar#a",
    ]


def _leaks(place: Path, seen: list[str]) -> list[str]:
    outside = os.path.realpath(place / "outside")
    return [name for name in seen if name.startswith((outside, "/etc/passwd")) or "/" not in name]


def _table(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        quoted = [[value.replace('"', '""') for value in row.values()] for row in rows]
        lines = ["id,path,caption", *(",".join(f'"{value}"' for value in row) for row in quoted)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_no_table_of_captions_leads_outside(place: Path, form: str) -> None:
    bad = [p for p in _paths(place) if not (form == "csv" and "\0" in p)]
    rows = [{"id": f"r{i}", "path": path, "caption": "c"} for i, path in enumerate([*bad, "good.mp4"])]
    rows += [{"id": path, "path": "", "caption": "c"} for path in bad]
    table = _table(place / f"t.{form}", rows)
    with watched() as seen:
        catalog(CatalogConfig(videos=place / "v", captions=table, output=place / "c.parquet"))
    assert not _leaks(place, seen)
    status = {r["id"]: r["status"] for r in pyarrow.parquet.read_table(place / "c.parquet").to_pylist()}
    assert [name for name, text in status.items() if text == "ok"] == [f"r{len(bad)}"]
    assert str((place / "v/good.mp4").resolve()) in seen


def _tampered(place: Path, rows: list[dict[str, str]]) -> Path:
    """A catalog that nobody has checked: every row says that it is ok."""
    schema = with_videos_folder(SCHEMA, place / "v", place)
    ready = [{"caption": f"about {i}", "status": catalog_module.OK, **row} for i, row in enumerate(rows)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ready, schema=schema), place / "bad.parquet")
    return place / "bad.parquet"


def _by_path(place: Path) -> tuple[Path, list[str]]:
    rows = [{"id": f"r{i}", "path": path} for i, path in enumerate(_paths(place))]
    return _tampered(place, [*rows, {"id": "good", "path": "good.mp4"}]), [row["id"] for row in rows]


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_no_catalog_leads_extract_outside(place: Path, form: str) -> None:
    bad, ids = _by_path(place)
    with watched() as seen:
        extract(ExtractConfig(catalog=bad, num_frames=2, format=form, output=place / "out"))
    assert not _leaks(place, seen)
    failed = read_failures(place / "out/failed.jsonl")
    assert list(failed) == ids and all("leaves the folder of the videos" in text for text in failed.values())


def test_no_catalog_leads_embed_or_report_outside(place: Path) -> None:
    bad, ids = _by_path(place)
    with watched() as seen:
        embed(
            EmbedConfig(
                catalog=bad, vision_backbone_id="tiny-vit", pretrained_backbones=False, num_frames=1, output=place / "e"
            )
        )
    assert not _leaks(place, seen)
    assert list(read_failures(place / "e/failed.jsonl")) == ids
    rows = [{"video_id": i, "caption": "c", "cluster": str(n // 8)} for n, i in enumerate(ids)]
    (place / "clusters.json").write_text(json.dumps([*rows, {"video_id": "good", "caption": "c", "cluster": "x"}]))
    with watched() as seen:
        try:
            report(ReportConfig(clusters=place / "clusters.json", catalog=bad, output=place / "r.html"))
        except ValueError as error:  # a woven example of it is refused as training refuses it
            assert "leaves the media folder" in str(error) or "media path" in str(error)
    assert not _leaks(place, seen)


@pytest.mark.parametrize("bad_id", ["../outside/frames", "linked", "inner", "told", "/etc"])
def test_no_id_leads_weave_and_qna_outside(place: Path, bad_id: str) -> None:
    """`--frames` looks for a folder of each id."""
    frames = place / "f"
    for name in ("inner", "told"):
        (frames / name).mkdir(parents=True)
    (frames / "linked").symlink_to(place / "outside/frames", target_is_directory=True)
    (frames / "inner/0000.png").symlink_to(place / "outside/frames/0000.png")
    (frames / "told/0000.png").write_bytes(b"x")
    (place / "outside/manifest.json").write_text('{"indices": [0]}')
    (frames / "told/manifest.json").symlink_to(place / "outside/manifest.json")
    bad = _tampered(place, [{"id": bad_id, "path": "good.mp4"}])
    (place / "cl.json").write_text(json.dumps([{"video_id": bad_id, "caption": "c", "cluster": "0"}]))
    (place / "q.json").write_text(json.dumps([{"video_id": bad_id, "question": "q", "answer": "a"}]))
    woven = WeaveConfig(clusters=place / "cl.json", catalog=bad, frames=frames, total_frames=1, output=place / "w.json")
    asked = QnaConfig(
        questions=str(place / "q.json"), catalog=bad, frames=frames, num_frames=1, output=place / "qn.json"
    )
    for tool, cfg in ((weave, woven), (qna, asked)):
        with watched() as seen, pytest.raises(ValueError, match="leads out of it, by itself or by a link"):
            tool(cfg)  # type: ignore[operator]
        assert not _leaks(place, seen)
    assert not (place / "w.json").exists() and not (place / "qn.json").exists()


@pytest.mark.parametrize("linked", ["000000.tar", "000000.index.json"])
def test_no_shard_leads_outside(place: Path, linked: str) -> None:
    (place / "s").mkdir()
    for folder in (place / "outside", place / "s"):
        with tarfile.open(folder / "000000.tar", "w") as tar:
            tar.add(place / "v/good.mp4", "good.mp4")
    (place / "outside/000000.index.json").write_text('{"bytes": 0, "clips": {}, "failed": {}}')
    (place / "s" / linked).unlink(missing_ok=True)
    (place / "s" / linked).symlink_to(place / "outside" / linked)
    bad = _tampered(place, [{"id": "good", "path": "good.mp4"}])
    (place / "cl.json").write_text(json.dumps([{"video_id": "good", "caption": "c", "cluster": "0"}]))
    cfg = WeaveConfig(
        clusters=place / "cl.json", catalog=bad, frames=place / "s", total_frames=1, output=place / "w.json"
    )
    with watched() as seen, pytest.raises(ValueError, match="is a link that leaves the folder"):
        weave(cfg)
    assert not _leaks(place, seen)
