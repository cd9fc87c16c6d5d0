"""Columns of texts: they are sequences of str, find each other's places, and survive odd columns."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest

from prismatic.webvid import texts
from prismatic.webvid.clusters_file import read_clusters_file
from prismatic.webvid.files import write_rows
from prismatic.webvid.texts import Texts, read_lines


def test_a_sequence_of_str(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PIECE", 2)
    found = Texts.of(["b", "a", "\u00e9", "", "a"])
    assert list(found) == ["b", "a", "\u00e9", "", "a"] == found[:] and found[2] == "\u00e9" and len(found) == 5
    assert found.has_repeats() and not Texts.of("abc").has_repeats() and list(Texts.of([])) == []
    assert found.take([4, 0]) == ["a", "b"]
    assert found.places(Texts.of(["a", "x", "", "b"])).tolist() == [1, -1, 3, 0]
    chunks = pyarrow.chunked_array([["x", None], [], ["y"]], pyarrow.string())
    assert Texts(chunks) == ["x", "", "y"] and len(Texts(pyarrow.chunked_array([], pyarrow.string()))) == 0


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbfa\nb c\n")
    assert read_lines(tmp_path / "ids.txt", "--ids") == ["a", "b c"]
    (tmp_path / "ids.txt").write_bytes(b"\xff")
    for path, said in ((tmp_path / "ids.txt", "not UTF-8"), (tmp_path / "gone", "no such file")):
        with pytest.raises(ValueError, match=said):
            read_lines(path, "--ids")


ROWS = [
    {"video_id": "b", "caption": '"},\n{"video_id": "no"}, {', "cluster": "7"},
    {"video_id": "a", "caption": "x", "cluster": "3"},
    {"video_id": "\u00e9", "caption": "", "cluster": "7"},
]


@pytest.mark.parametrize("name", ["c.json", "c.jsonl"])
def test_clusters_by_columns_are_those_by_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / name, iter(ROWS))
    for block in (1, 1 << 25):
        monkeypatch.setattr("prismatic.webvid.clusters_file.BLOCK", block)
        monkeypatch.setattr("prismatic.webvid.clusters_file._row_by_row", None)  # not needed
        found = read_clusters_file(tmp_path / name)
        assert (list(found.names), list(found.ids), found.ends.tolist()) == (["7", "3"], ["b", "\u00e9", "a"], [2, 3])
        assert found.ids[found.span(1)] == ["a"] and found.sizes.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n{"video_id": "a", "cluster": "0"},\n{"video_id": "b"}\n]\n', "row 2 lacks video_id or cluster"),
        ('[\n{"video_id": "a", "cluster": "0"},\n{"video_id": \n]\n', "not JSON"),
        ('[\n{"video_id": "a", "cluster": "0"}\n', "not JSON"),
        ('[\n{"video_id": "a", "cluster": "0"},\n]\n', "not JSON"),
        ('[\n{"video_id": "a", "cluster": "0"}\n{"video_id": "b", "cluster": "0"}\n]\n', "not JSON"),
        ("[\n]\n", "is empty"),
        ("{}", "expected a list of JSON objects"),
    ],
)
def test_what_is_no_clusters_file(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_clusters_file(tmp_path / "c.json")


def test_numbers_as_ids_and_labels_are_read_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[\n{"video_id": 1, "cluster": 0},\n{"video_id": 2, "cluster": 0}\n]\n')
    found = read_clusters_file(tmp_path / "c.json")
    assert (list(found.names), list(found.ids)) == (["0"], ["1", "2"])
