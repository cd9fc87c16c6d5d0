"""`webvid.py convert`: pictures as clips; whatever the order, a conversation keeps its own picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prismatic.conf.webvid_rows import ConvertConfig
from prismatic.data.annotations import load_records
from prismatic.webvid.convert import convert


def _write(path: Path, images: list[str | None]) -> Path:
    """A row about its own picture each; None: a text-only row."""
    rows: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        mark = "<image>\n" if image else ""
        said = [{"from": "human", "value": f"{mark}Q{i}"}, {"from": "gpt", "value": f"about {image}"}]
        rows.append({"id": f"r{i}", **({"image": image} if image else {}), "conversations": said})
    path.write_text(json.dumps(rows))
    return path


def _run(tmp_path: Path, images: list[str | None], **values: Any) -> list[dict[str, Any]]:
    cfg = ConvertConfig(annotations=_write(tmp_path / "in.json", images), output=tmp_path / "out.json", **values)
    convert(cfg)
    load_records(cfg.output, tmp_path)
    return json.loads(cfg.output.read_text())


def _pairs(rows: list[dict[str, Any]]) -> list[tuple[str, list[str] | None]]:
    return [(row["id"], row.get("frames")) for row in rows]


def test_pairs_in_both_orders_with_text_rows_between(tmp_path: Path) -> None:
    rows = _run(tmp_path, ["a", None, "b", "c", "d"])
    assert _pairs(rows) == [
        *(("r0", ["a", "b"]), ("r0", ["b", "a"]), ("r2", ["b", "a"]), ("r2", ["a", "b"])),
        ("r1", None),
        *(("r3", ["c", "d"]), ("r3", ["d", "c"]), ("r4", ["d", "c"]), ("r4", ["c", "d"])),
    ]
    for row in rows:
        about = row["conversations"][1]["value"]
        assert about == "about None" or about.removeprefix("about ") in row["frames"]
        assert "image" not in row


def test_one_frame_and_an_odd_picture(tmp_path: Path) -> None:
    assert _pairs(_run(tmp_path, ["a", "b"], num_frames=1)) == [("r0", ["a"]), ("r1", ["b"])]
    rows = _run(tmp_path, ["a", "b", "c"])
    assert _pairs(rows)[4:] == [("r2", ["c", "b"]), ("r2", ["b", "c"])]


def test_own_picture_in_every_place_of_three(tmp_path: Path) -> None:
    rows = _run(tmp_path, ["a", "b", "c"], num_frames=3)
    assert len(rows) == 9
    for own, name in (("r0", "a"), ("r1", "b"), ("r2", "c")):
        frames = [f for i, f in _pairs(rows) if i == own]
        assert [f.index(name) for f in frames] == [0, 1, 2] and all(sorted(f) == ["a", "b", "c"] for f in frames)


def test_one_order_and_shuffled_groups(tmp_path: Path) -> None:
    images: list[str | None] = [f"{i}.png" for i in range(40)]
    rows = _run(tmp_path, images, orders="one", shuffle=True)
    assert sorted(row["id"] for row in rows) == sorted(f"r{i}" for i in range(40))
    places = [row["frames"].index(f"{row['id'][1:]}.png") for row in rows]
    assert 8 < sum(places) < 32
    assert any(abs(int(a.split(".")[0]) - int(b.split(".")[0])) > 2 for a, b in (row["frames"] for row in rows))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row has one `image`"):
        _run(tmp_path, [None])
    with pytest.raises(ValueError, match="--num_frames 3 is more than the pictures"):
        _run(tmp_path, ["a", "b"], num_frames=3)
    with pytest.raises(ValueError, match="--orders must be all or one"):
        _run(tmp_path, ["a", "b"], orders="two")
