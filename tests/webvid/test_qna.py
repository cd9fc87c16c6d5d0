"""`webvid.py qna`: typed question files as the older tool wrote them, and as JSON."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from prismatic.conf.webvid_rows import QnaConfig
from prismatic.data.annotations import load_records
from prismatic.webvid.catalog import SCHEMA
from prismatic.webvid.qna import qna


@pytest.fixture
def cfg(tmp_path: Path) -> QnaConfig:
    rows = [
        {"id": f"v{i}", "path": f"p/v{i}.mp4", "caption": "c", "status": "ok" if i < 4 else "missing"} for i in range(5)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "catalog.parquet")
    folder = tmp_path / "questions"
    folder.mkdir()
    for kind in ("action", "object"):
        entries: list[dict[str, Any]] = [
            {"file_paths": [f"webvid/v{i}/0000.png", "more"], "question": f"{kind} {i} {k}?", "answer": f"A{k}"}
            for i in range(5)
            for k in range(2)
        ]
        entries.append({"file_paths": ["v0.mp4"], "question": "empty?", "answer": ""})
        (folder / f"video_questions_{kind}_n=10-start=0.txt").write_text(repr(entries))
    typed = [{"video_id": "v0", "type": "scene", "question": "Where?", "answer": "Here"}]
    (folder / "more.json").write_text(json.dumps(typed))
    return QnaConfig(
        questions=str(folder / "*"), catalog=tmp_path / "catalog.parquet", output=tmp_path / "qna.json", num_frames=4
    )


def test_rows_that_name_shards(cfg: QnaConfig, tmp_path: Path) -> None:
    cfg.frames = tmp_path / "s"
    cfg.frames.mkdir()
    for number, names in enumerate((("v0", "v1"), ("v3", "v2"))):
        with tarfile.open(cfg.frames / f"{number:06d}.tar", "w") as tar:
            for name in names:
                member = tarfile.TarInfo(f"{name}.0000.png")
                tar.addfile(member, io.BytesIO())
    qna(cfg)
    where = {"v0": 0, "v1": 0, "v2": 1, "v3": 1}
    for row in _read(cfg):
        assert row["videos"] == [f"{where[row['id']]:06d}.tar#{row['id']}"] and row["num_frames_per_video"] == 4
    (cfg.frames / "000001.tar").unlink()
    with pytest.raises(ValueError, match=r"no shard holds (v2, v3|v3, v2); `webvid.py extract` makes them"):
        qna(cfg)


def _read(cfg: QnaConfig) -> list[dict[str, Any]]:
    return json.loads(cfg.output.read_text())


def test_rows_of_each_type_for_each_video(cfg: QnaConfig, tmp_path: Path) -> None:
    told = qna(cfg)
    rows = _read(cfg)
    assert Counter(row["type"] for row in rows) == {"action": 4, "object": 4, "scene": 1}
    assert len({(row["id"], row["type"]) for row in rows}) == 9
    assert "9 rows about 4 of 4 (100.0 %) usable videos" in told
    assert "4 about a video that the catalog cannot use, 2 without a question or an answer" in told
    for record in load_records(cfg.output, tmp_path):
        assert record.media[0].num_frames == 4 and record.media[0].paths[0] == str(tmp_path / f"p/{record.id}.mp4")
        assert record.turns[0].text.startswith("<video>\n") and record.turns[1].text
    cfg.per_type, cfg.types = 2, ("object",)
    qna(cfg)
    assert Counter(row["id"] for row in _read(cfg)) == {f"v{i}": 2 for i in range(4)}


def test_frames_of_folders(cfg: QnaConfig, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"frames/v{i}").mkdir(parents=True)
        for k in range(8):
            Image.new("RGB", (4, 4)).save(tmp_path / f"frames/v{i}/{k:04d}.png")
    cfg.frames, cfg.num_frames = tmp_path / "frames", 2
    qna(cfg)
    assert all(row["frames"] == [f"{row['id']}/0000.png", f"{row['id']}/0007.png"] for row in _read(cfg))


def test_lists_as_python_prints_them_and_as_it_does_not(cfg: QnaConfig, tmp_path: Path) -> None:
    odd = ['it\'s "so"', "a {brace} and a 'quote'", "two\nlines", "\u2028", "caf\u00e9", "back\\slash"]
    entries = [{"file_paths": ["v0.mp4"], "question": text, "answer": "yes"} for text in odd]
    nested = {"video_id": "v0", "question": "nested", "answer": "yes", "more": {"x": None}}
    file = tmp_path / "video_questions_odd.txt"
    cfg.questions, cfg.per_type = str(file), 99
    halves = '{"video_id": "v0", "question": "half \\ud83d of one, \\ud83d\\ude00 whole", "answer": "\\/"}'
    for text, more in (
        (repr(entries), []),
        ("\n " + repr(entries).replace("}, {", "},\n{") + "\n", []),
        (json.dumps(entries), []),
        (repr([*entries, nested, entries[0]]), ["nested", odd[0]]),
        (repr([nested]), None),
        (f"[{halves}]", None),
    ):
        file.write_text(text, encoding="utf-8")
        qna(cfg)
        asked = sorted(row["conversations"][0]["value"].removeprefix("<video>\n") for row in _read(cfg))
        if more is not None:
            assert asked == sorted(" ".join(question.split()) for question in [*odd, *more] if question.split())
        else:
            assert asked in (["nested"], ["half ? of one, \U0001f600 whole"])
    for text in (repr(entries)[:-1], repr(entries) + "x", repr(entries).replace("}, {", "} {"), "[{'a': b}]"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="neither JSON nor a list as Python writes it"):
            qna(cfg)


def test_bad_input(cfg: QnaConfig, tmp_path: Path) -> None:
    cfg.types = ("temporal",)
    with pytest.raises(ValueError, match="no usable entry of type temporal"):
        qna(cfg)
    cfg.types = ("a", "b")
    with pytest.raises(ValueError, match="--types takes a list in brackets"):
        qna(cfg)
    cfg.types = ()
    code = tmp_path / "video_questions_evil.txt"
    code.write_text("__import__('os').getcwd()")
    cfg.questions = str(code)
    with pytest.raises(ValueError, match="neither JSON nor a list as Python writes it"):
        qna(cfg)
    cfg.frames, cfg.num_frames = tmp_path, None
    with pytest.raises(ValueError, match="--frames needs --num_frames"):
        qna(cfg)
