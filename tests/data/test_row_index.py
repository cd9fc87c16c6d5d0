"""The index of a large file: the rows of the file in every form, made once, made anew when stale, never half made."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismatic.data import row_index, row_scan
from prismatic.data.annotations import AnnotationError, RecordTable, load_records
from prismatic.data.file_records import FileRecords, JoinedRecords
from prismatic.data.sizes import RowSizes, sizes_of
from prismatic.types import Record

ROWS = 40


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(row_index, "INDEXED_FROM", 200)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _row(number: int) -> dict[str, Any]:
    media = [{"image": f"{number}.jpg"}, {"frames": [f"{number}/{i}.png" for i in range(number % 5 + 1)]}, {}]
    text = ("Q", "caf\u00e9 \u6f22\u5b57 \U0001f600", 'a "quoted]" [text}, ,')[number % 3] * (number % 4 + 1)
    said = [{"from": "human", "value": text}, {"from": "gpt", "value": "A\nB" * (number % 7)}]
    return {"id": str(number), **media[number % 3], "conversations": said}


def _texts() -> Iterator[tuple[str, bytes]]:
    rows = [_row(number) for number in range(ROWS)]
    plain, escaped = (json.dumps(rows, ensure_ascii=ascii_only) for ascii_only in (False, True))
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    yield "list.json", plain.encode()
    yield "escaped.json", escaped.encode()
    yield "indented.json", json.dumps(rows, indent=4, ensure_ascii=False).encode()
    yield "spaced.json", b" \r\n\t" + plain.encode().replace(b"}, {", b"}\n ,\r\n\t{") + b" \n"
    yield "lines.jsonl", lines.encode()
    yield "ended.jsonl", (lines + "\n").encode()
    yield "windows.jsonl", (lines.replace("\n", "\r\n\r\n") + "\r\n").encode()
    yield "marked.json", "\ufeff".encode() + plain.encode()
    yield "marked.jsonl", "\ufeff".encode() + lines.encode()
    yield "lines.json", lines.encode()
    yield "list.jsonl", plain.encode()


def _index_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.index"))


def _write(folder: Path, count: int = ROWS, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(_row(number)) + "\n" for number in range(count)), encoding="utf-8")
    return path


@pytest.mark.parametrize("window", [1 << 22, 1, 37, 1000])
@pytest.mark.parametrize(("name", "content"), [pytest.param(n, c, id=n) for n, c in _texts()])
def test_every_form_gives_the_records_of_the_whole_file(
    tmp_path: Path, name: str, content: bytes, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_scan, "_CHUNK", max(window, 40))  # the first bytes tell the form
    path = tmp_path / name
    path.write_bytes(content)
    found = load_records(path, tmp_path)
    assert isinstance(found, FileRecords) and len(found) == ROWS
    monkeypatch.setattr(row_index, "INDEXED_FROM", 1 << 30)
    whole = load_records(path, tmp_path)
    assert isinstance(whole, RecordTable) and list(found) == list(whole)
    assert found[-1] == whole[-1] and found[3:9:2] == whole[3:9:2]
    _same_sizes(found.sizes, sizes_of(list(whole)))
    _same_sizes(whole.sizes, sizes_of(list(whole)))


def _same_sizes(a: RowSizes | None, b: RowSizes | None) -> None:
    assert a is not None and b is not None and (a.text == b.text).all()
    assert [a.shapes[i] for i in a.shape] == [b.shapes[i] for i in b.shape]


def test_second_opening_does_not_read_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path)
    first = list(load_records(path, tmp_path))
    (index,) = _index_files(tmp_path)
    assert index.parent == tmp_path and index.name.startswith(".rows.jsonl.")
    monkeypatch.setattr(row_index, "scan_rows", lambda path: pytest.fail("read again"))
    assert list(load_records(path, tmp_path)) == first
    with pytest.raises(pytest.fail.Exception, match="read again"):
        load_records(path, tmp_path / "other")  # other media folder: its paths were never checked


def test_changed_file_is_looked_through_again(tmp_path: Path) -> None:
    path = _write(tmp_path)
    assert len(load_records(path, tmp_path)) == ROWS
    _write(tmp_path, ROWS + 2)
    assert len(load_records(path, tmp_path)) == ROWS + 2
    content = path.read_text().replace('"id": "1"', '"id": "x"')  # of the same size
    path.write_text(content)
    os.utime(path, ns=(1, 1))
    assert load_records(path, tmp_path)[1].id == "x" and len(_index_files(tmp_path)) == 1


@pytest.mark.parametrize("damage", [b"", b"prismatic rows 1", None, b"other bytes" * 100])
def test_damaged_index_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    path = _write(tmp_path)
    expected = list(load_records(path, tmp_path))
    (index,) = _index_files(tmp_path)
    index.write_bytes(index.read_bytes()[:-8] if damage is None else damage)
    assert list(load_records(path, tmp_path)) == expected


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = _write(data)
    original = Path.open

    def read_only(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "x" in mode and any(str(self).startswith(str(folder)) for folder in refused):
            raise OSError(30, "Read-only file system")
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    refused = [data]
    expected = list(load_records(path, data))
    assert [index.relative_to(tmp_path).parts[:3] for index in _index_files(tmp_path)] == [
        ("cache", "prismatic", "rows")
    ]
    assert list(load_records(path, data)) == expected
    _index_files(tmp_path)[0].unlink()
    refused.append(tmp_path / "cache")
    assert list(load_records(path, data)) == expected and not _index_files(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_broken_row_is_named_and_others_of_a_mixture_do_not_mind_it(tmp_path: Path) -> None:
    path = _write(tmp_path)
    lines = path.read_text().splitlines()
    lines[20] = json.dumps({"id": "20", "conversations": []})
    path.write_text("\n".join(lines))
    for _ in range(2):  # without an index, and with one
        with pytest.raises(AnnotationError, match=r"rows\.jsonl, row 21: `conversations` must be a list"):
            load_records(path, tmp_path)
    mixture = tmp_path / "mix.yaml"
    for strategy, ids in (("first:20", range(20)), ("end:19", range(21, 40))):
        mixture.write_text(f"datasets:\n  - {{json_path: rows.jsonl, sampling_strategy: '{strategy}'}}\n")
        assert [record.id for record in load_records(mixture, tmp_path)] == [str(i) for i in ids]
    mixture.write_text("datasets:\n  - {json_path: rows.jsonl, sampling_strategy: 'first:21'}\n")
    with pytest.raises(AnnotationError, match="row 21"):
        load_records(mixture, tmp_path)


def test_large_and_small_files_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("a", ROWS), ("b", 1), ("c", 1), ("d", ROWS)):
        _write(tmp_path, count, f"{name}.jsonl")
    mixture = tmp_path / "mix.yaml"
    text = "datasets:\n  - {json_path: '{a,b,c}.jsonl'}\n  - {json_path: d.jsonl, sampling_strategy: 'random:25%'}\n"
    mixture.write_text(text)
    found = load_records([mixture, tmp_path / "b.jsonl"], tmp_path)
    assert isinstance(found, JoinedRecords) and len(found) == ROWS + 2 + ROWS // 4 + 1
    monkeypatch.setattr(row_index, "INDEXED_FROM", 1 << 30)
    whole = load_records([mixture, tmp_path / "b.jsonl"], tmp_path)
    assert list(found) == list(whole)
    _same_sizes(found.sizes, whole.sizes)


def test_file_that_changes_under_a_run_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path)
    found = load_records(path, tmp_path)
    path.write_text(path.read_text().replace("{", " "))
    with pytest.raises(AnnotationError, match="has changed since the run began"):
        found[3]


def test_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path)
    scan = row_scan.scan_rows

    def growing(path: Path) -> Iterator[row_scan.Place]:
        yield from scan(path)
        with path.open("a") as file:
            file.write("\n")

    monkeypatch.setattr(row_index, "scan_rows", growing)
    with pytest.raises(AnnotationError, match="has changed while it was read"):
        load_records(path, tmp_path)


def test_another_process_maps_the_same_index(tmp_path: Path) -> None:
    path = _write(tmp_path, 2000)
    load_records(path, tmp_path)
    found = load_records(path, tmp_path)
    data = pickle.dumps(found)
    assert len(data) < 2000 and list(pickle.loads(data)) == list(found)


def _load(path: Path, out: Any) -> None:
    row_index.INDEXED_FROM = 200
    out.put([record.id for record in load_records(path, path.parent)])


def test_several_processes_at_once(tmp_path: Path) -> None:
    path = _write(tmp_path, 3000)
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    processes = [context.Process(target=_load, args=(path, out)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(ids == [str(i) for i in range(3000)] for ids in found)
    assert len(_index_files(tmp_path)) == 1 and not list(tmp_path.rglob("*.partial"))


def test_killed_while_the_index_is_made(tmp_path: Path) -> None:
    """At random moments of making it: the next process gets the rows, whatever was left behind."""
    path = _write(tmp_path, 3000)
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    for _ in range(6):
        for index in _index_files(tmp_path):
            index.unlink()
        process = context.Process(target=_load, args=(path, context.Queue()))
        process.start()
        time.sleep(rng.uniform(0.01, 0.12))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = load_records(path, tmp_path)
        assert len(found) == 3000 and found[2999].id == "2999"


def test_rows_cost_no_memory_of_their_own(tmp_path: Path) -> None:
    found = load_records(_write(tmp_path, 2000), tmp_path)
    assert isinstance(found, FileRecords)
    columns = (found._rows.index.start, found._rows.index.size, found.sizes.text, found.sizes.shape)
    assert all(isinstance(column, np.memmap) for column in columns)
    assert sum(column.nbytes for column in columns) == 2000 * 20
    assert isinstance(found[7], Record)
