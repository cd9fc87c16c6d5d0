"""Caption tables of every kind, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prismatic.webvid.captions import Caption, Columns, read_captions

ANY = Columns()


def test_the_same_table_in_every_format(tmp_path: Path) -> None:
    rows = [{"id": 1, "caption": "A cat, asleep"}, {"id": 2, "caption": " two\n lines "}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "t.csv").write_text('\ufeffid,caption\n1,"A cat, asleep"\n2," two\n lines "\n', encoding="utf-8")
    (tmp_path / "t.tsv").write_text('id\tcaption\n1\tA cat, asleep\n2\t" two\n lines "\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    expected = [Caption("1", "", "1", "A cat, asleep"), Caption("2", "", "2", "two lines")]
    for name in ("t.json", "t.jsonl", "t.csv", "t.tsv", "t.parquet"):
        assert list(read_captions(tmp_path / name, ANY)) == expected, name


def test_what_utf_8_and_lists_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('[{"id": "a\\nb", "caption": "half \\ud83d, whole \\ud83d\\ude00,\\u2028next"}]')
    assert list(read_captions(tmp_path / "t.json", ANY)) == [
        Caption("a b", "", "a\nb", "half ?, whole \U0001f600, next")
    ]


def test_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,clip,what,name\n7,a/b.mp4,x,y\n")
    columns = Columns(path="clip", caption="what")
    assert list(read_captions(tmp_path / "t.csv", columns)) == [Caption("7", "a/b.mp4", "7", "x")]
    assert next(read_captions(tmp_path / "t.csv", Columns(id="clip"))) == Caption("a/b.mp4", "", "a/b.mp4", "y")


def test_a_file_names_its_video_and_empty_tables_are_empty(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('[{"file": "a/b.mp4", "text": null}]')
    assert list(read_captions(tmp_path / "t.json", ANY)) == [Caption("b", "a/b.mp4", "b", "")]
    (tmp_path / "e.json").write_text("[]")
    assert list(read_captions(tmp_path / "e.json", ANY)) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "a,b\n1,2\n", r"--id_column or --path_column"),
        ("t.csv", "id,b\n1,2\n", r"--caption_column"),
        ("t.csv", "id,name\n1,two, three\n", r"line 2: 2 columns expected"),
        ("t.csv", "id,name\n1\n", r"line 2: 2 columns expected"),
        ("t.csv", "id,name\n,x\n", r"row 1 has neither an id nor a file"),
        ("t.json", "{", r"not JSON"),
        ("t.json", '{"a": 1}', r"expected a list of JSON objects"),
        ("t.jsonl", '{"id": 1, "text": "x"}\n{', r"line 2: not JSON"),
        ("t.txt", "x", r"expected .csv, .tsv, .json, .jsonl or .parquet"),
        ("t.parquet", "x", r"not a Parquet file"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        list(read_captions(tmp_path / name, ANY))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,name\n1,x\n")
    with pytest.raises(ValueError, match=r"--caption_column: .* has no column 'title'; it has id, name"):
        list(read_captions(tmp_path / "t.csv", Columns(caption="title")))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        list(read_captions(tmp_path / "b.csv", ANY))
