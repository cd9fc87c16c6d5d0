"""`webvid.py ids`: of catalogs, clusters and woven rows, and that `extract --ids` takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prismatic.conf.webvid_rows import IdsConfig
from prismatic.webvid.catalog import SCHEMA
from prismatic.webvid.extract import read_ids
from prismatic.webvid.ids import ids


def test_ids_of_all_kinds_of_files(tmp_path: Path) -> None:
    rows = [{"id": i, "path": "x.mp4", "caption": "c", "status": "ok" if i != "b" else "missing"} for i in "abc"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "c.parquet")
    assert "the ids of 2 videos" in ids(IdsConfig(catalog=tmp_path / "c.parquet", output=tmp_path / "i.json"))
    assert json.loads((tmp_path / "i.json").read_text()) == ["a", "c"]
    ids(IdsConfig(catalog=tmp_path / "c.parquet", output=tmp_path / "i.txt"))
    assert read_ids(str(tmp_path / "i.txt")) == {"a", "c"}
    for rows in (
        [{"video_id": i, "cluster": "0"} for i in ("a, b", "c", "c")],
        [{"id": "a, b,"}, {"id": "c, a"}],
    ):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        ids(IdsConfig(annotations=tmp_path / "rows.json", output=tmp_path / "o.json"))
        expected = ["a, b", "c"] if "video_id" in rows[0] else ["a", "b", "c"]
        assert json.loads((tmp_path / "o.json").read_text()) == expected


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "other.json").write_text('[{"text": "x"}]')
    for values, said in (
        ({}, "ids needs one of --catalog FILE and --annotations FILE"),
        ({"annotations": tmp_path / "none.json"}, "names no usable video"),
        ({"annotations": tmp_path / "other.json"}, "row 1 has neither video_id nor id"),
        ({"catalog": tmp_path / "gone.parquet"}, "no such file"),
        ({"catalog": tmp_path / "c.parquet", "output": Path("x.csv")}, r"--output must end in \.json or \.txt"),
    ):
        with pytest.raises(ValueError, match=said):
            ids(IdsConfig(**{"output": tmp_path / "o.json", **values}))
    assert not (tmp_path / "o.json").exists()
