"""Files between tools: rows one at a time give what rows at once give, errors included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prismatic.webvid import files
from prismatic.webvid.files import iter_rows, read_rows, write_rows

# The second holds what str.splitlines takes for ends of lines.
ROWS = [{"a": 1, "b": "x, [y]"}, {"a": "1\u2028 2\x85 3\x0c 4\r 5"}, {"a": {"c": "]"}}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_written_rows_are_read_one_at_a_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    write_rows(path, ROWS)
    assert read_rows(path, "--x") == ROWS
    monkeypatch.delattr(files, "read_rows")
    assert list(iter_rows(path, "--x")) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "[]",
        "[\n]",
        '[\n{"a": 1, "b": "x, [y]"},\n{"a": 2}, {"a": 3},\n{"a": 4}\n]',
        '[\n{"a": 1},\n{"a":\n2}\n]\n',
        "\ufeff" + json.dumps(ROWS),
    ],
)
def test_any_list_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    assert list(iter_rows(path, "--x")) == read_rows(path, "--x")


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "[\n1\n]", '[\n{"a": 1},\n', '[\n{"a": 1}\n]\nmore', '[\n{"a": 1},\n]']
)
def test_what_is_no_list_of_objects_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="--x"):
        list(iter_rows(path, "--x"))
    path.write_bytes(b'[\n{"a": "\xff"}\n]')
    with pytest.raises(ValueError, match="not UTF-8"):
        list(iter_rows(path, "--x"))
    with pytest.raises(ValueError, match="no such file"):
        list(iter_rows(tmp_path / "none.json", "--x"))
