"""`webvid.py captions`: other captions by id, in each kind of file, with the coverage told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from prismatic.conf.webvid_rows import CaptionsConfig
from prismatic.data.weave import Shown
from prismatic.webvid.catalog import SCHEMA, read_catalog
from prismatic.webvid.join_captions import captions


def _json(path: Path, value: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def _woven(path: Path) -> Path:
    def row(row_id: str) -> dict[str, Any]:
        said = [{"from": "human", "value": "<video>\nQ"}, {"from": "gpt", "value": "old."}]
        return {"id": row_id, "frames": ["x.png"], "conversations": said}

    # The older tool's ids end in a comma.
    return _json(path, [row("a, b,"), row("c, d"), row("e, f")])


def test_woven_rows_with_cleaned_captions_keyed_by_anything(tmp_path: Path) -> None:
    table = {str(i): {"video_id": v, "cleaned_caption": f"new  {v}."} for i, v in enumerate("abc")}
    cfg = CaptionsConfig(
        input=_woven(tmp_path / "woven.json"),
        captions=str(_json(tmp_path / "cleaned.json", table)),
        output=tmp_path / "out.json",
    )
    told = captions(cfg)
    rows = json.loads(cfg.output.read_text())
    assert [row["conversations"][1]["value"] for row in rows] == ["new a. new b.", "old.", "old."]
    assert rows[0]["id"] == "a, b," and rows[0]["conversations"][0]["value"] == "<video>\nQ"
    assert "new captions for 3 of 6 (50.0 %) videos" in told and "without: d, e, f" in told
    assert "1 with new captions; left as they were: 1 of whose videos only some have one, 1 without any" in told
    cfg.missing = "drop"
    captions(cfg)
    assert [row["id"] for row in json.loads(cfg.output.read_text())] == ["a, b,"]


def test_clusters_with_enriched_captions_of_several_files(tmp_path: Path) -> None:
    clusters = [{"video_id": v, "caption": "old", "cluster": "0"} for v in "ab"]
    _json(tmp_path / "parts/0.json", [{"video_id": "a", "enriched_caption": "rich a"}])
    (tmp_path / "parts/1.jsonl").write_text('{"id": "b", "enriched_caption": "rich b"}\n')
    cfg = CaptionsConfig(
        input=_json(tmp_path / "clusters.json", clusters),
        captions=str(tmp_path / "parts/*"),
        output=tmp_path / "out.jsonl",
    )
    assert "2 captions from 2 files" in captions(cfg)
    rows = [json.loads(line) for line in cfg.output.read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["rich a", "rich b"] and rows[0]["cluster"] == "0"


def test_catalog(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "path": "a.mp4", "caption": "old", "duration": 2.0, "status": "ok"},
        {"id": "b", "path": "b.mp4", "caption": "", "duration": 2.0, "status": "no caption"},
        {"id": "c", "path": "c.mp4", "caption": "old", "duration": None, "status": "broken: x"},
        {"id": "a", "path": "d.mp4", "caption": "", "duration": 2.0, "status": "no caption"},
    ]
    schema = SCHEMA.with_metadata({b"prismatic.videos": b"videos"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / "c.parquet")
    (tmp_path / "new.csv").write_text("videoid,name\na,new a\nb,new b\nc,new c\n")
    (tmp_path / "below").mkdir()
    cfg = CaptionsConfig(
        input=tmp_path / "c.parquet", captions=str(tmp_path / "new.csv"), output=tmp_path / "below/out.parquet"
    )
    assert "1 that had no caption are usable now" in captions(cfg)
    found = read_catalog(cfg.output)
    assert found.captions == ["new a", "new b", "new c", "new a"]
    assert found.statuses == ["ok", "ok", "broken: x", "no caption"]
    assert found.videos.resolve() == (tmp_path / "videos").resolve(), "the moved catalog lost its videos"
    assert pyarrow.parquet.read_table(cfg.output)["duration"].to_pylist() == [2.0, 2.0, None, 2.0]


def test_rows_that_all_captions_do_not_answer_are_refused(tmp_path: Path) -> None:
    from prismatic.webvid.forms import FORMS

    table = _json(tmp_path / "t.json", [{"id": i, "caption": f"new {i}"} for i in "abc"])
    clips = [Shown(f"a {word} in the sun", 2, 3.0) for word in ("cat", "dog", "tree")]
    for name in FORMS.names():
        question, answer = FORMS.get(name)(clips, "What is shown?", np.random.default_rng(0))
        said = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]
        woven = _json(tmp_path / f"{name}.json", [{"id": "a, b, c", "conversations": said}])
        cfg = CaptionsConfig(input=woven, captions=str(table), output=tmp_path / "out.json")
        if name in ("joined", "ordered"):
            captions(cfg)
            assert "new b" in cfg.output.read_text(), name
            cfg.output.unlink()
        else:
            with pytest.raises(ValueError, match=r"row 1: its question is not answered by .* `webvid.py weave` again"):
                captions(cfg)
            assert not cfg.output.exists(), name


def test_the_last_of_two_captions_counts_and_strangers_are_told(tmp_path: Path) -> None:
    rows = [{"id": i, "path": f"{i}.mp4", "caption": "old", "status": "ok"} for i in "ab"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "c.parquet")
    new = [{"id": i, "caption": text} for i, text in (("b", "1"), ("z", "2"), ("b", "3"), ("y", "4"))]
    table, cut = _json(tmp_path / "t.json", new), tmp_path / "cut.csv"
    cfg = CaptionsConfig(input=tmp_path / "c.parquet", captions=str(table), output=tmp_path / "out.parquet")
    told = captions(cfg)
    assert "3 captions from 1 file" in told and "2 of the captions are of other videos: z, y" in told
    assert read_catalog(cfg.output).captions == ["old", "3"]
    cut.write_text("id,caption\na,one, two\n")
    cfg.captions = str(cut)
    with pytest.raises(ValueError, match="line 2: 2 columns expected; a caption with a comma needs quotes"):
        captions(cfg)


def test_named_fields_and_bad_input(tmp_path: Path) -> None:
    woven = _woven(tmp_path / "woven.json")
    table = _json(tmp_path / "t.json", [{"key": "a", "words": "x"}])
    values = {"input": woven, "captions": str(table), "output": tmp_path / "out.json"}
    captions(CaptionsConfig(**values, id_column="key", caption_column="words"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "has no field 'cleaned_caption'; it has key, words"),
        ({"caption_column": "words"}, "a row has no id .*--id_column"),
        ({"captions": str(tmp_path / "no*.json")}, r"--captions .*no\*\.json: no such file"),
        ({"captions": ""}, "captions needs --captions"),
        ({"missing": "maybe"}, "--missing must be keep or drop"),
        ({"output": tmp_path / "out.parquet"}, "must both end in"),
    ]
    for changed, said in cases:
        with pytest.raises(ValueError, match=said):
            captions(CaptionsConfig(**{**values, **changed}))
