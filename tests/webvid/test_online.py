"""Where online weaving takes clips and clusters from, and what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from prismatic.conf.data import DatasetConfig, OnlineWeaveConfig
from prismatic.data.annotations import load_records
from prismatic.data.weave import WovenEpochs
from prismatic.webvid.catalog import SCHEMA
from prismatic.webvid.online import refuse_shared_clips, weave_epochs
from prismatic.webvid.online_clusters import CACHE


def _annotations(folder: Path, count: int, name: str = "clips.json", first: int = 0) -> Path:
    rows = [
        {
            "id": f"v{i}",
            "video": f"v{i}.mp4",
            "conversations": [{"from": "human", "value": "<video>\nQ"}, {"from": "gpt", "value": f"cap{i}"}],
        }
        for i in range(first, first + count)
    ]
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def _catalog(folder: Path, count: int) -> Path:
    (folder / "set/videos").mkdir(parents=True)
    rows = [
        {"id": f"v{i}", "path": f"p/v{i}.mp4", "caption": f"cap{i}", "duration": i + 0.5, "status": "ok"}
        for i in range(count)
    ]
    rows.append({"id": "bad", "path": "bad.mp4", "caption": "", "status": "no caption"})
    schema = SCHEMA.with_metadata({b"prismatic.videos": b"videos"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), folder / "set/catalog.parquet")
    return folder / "set/catalog.parquet"


def _weave(file: Any, media: Path, seed: int = 7, num_frames: int = 8, **options: Any) -> WovenEpochs:
    data = DatasetConfig(
        finetune_stage_components=(file, media), weave=OnlineWeaveConfig(**{"videos_per_example": 2, **options})
    )
    data.validate()
    return weave_epochs(data, "finetune", seed=seed, num_frames=num_frames)


def _clusters(folder: Path, groups: list[list[int]], name: str = "clusters.json") -> Path:
    rows = [{"video_id": f"v{i}", "caption": "", "cluster": str(c)} for c, group in enumerate(groups) for i in group]
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def _groups(epochs: WovenEpochs, epoch: int) -> set[frozenset[int]]:
    return {frozenset(int(i[1:]) for i in row.id.split(", ")) for row in epochs[epoch]}


def test_clips_of_an_annotation_file(tmp_path: Path) -> None:
    rows = _weave(_annotations(tmp_path, 6), tmp_path)[0]
    assert len(rows) == 3
    assert rows[0].turns[0].text == "<video>\n<video>\nDescribe what is happening in the video."
    assert [m.num_frames for m in rows[0].media] == [4, 4]
    assert rows[0].turns[1].text == ". ".join(f"cap{i[1:]}" for i in rows[0].id.split(", ")) + "."


@pytest.mark.parametrize(("media", "prefix"), [("set/videos", ""), ("set", "videos/"), ("elsewhere", "")])
def test_clips_of_a_catalog(tmp_path: Path, media: str, prefix: str) -> None:
    """Paths are relative to the folder of the videos, or to one above it; or the videos have moved."""
    epochs = _weave(_catalog(tmp_path, 4), tmp_path / media, total_frames=2, form="timestamped")
    assert len(epochs.clips) == 4, "a clip whose status is not ok is woven"
    row = epochs[0][0]
    names = row.id.split(", ")
    assert [m.paths[0] for m in row.media] == [str(tmp_path / media / f"{prefix}p/{i}.mp4") for i in names]
    assert row.turns[1].text.startswith("0:00 - 0:0")


def test_clusters_file_and_several_in_turn(tmp_path: Path) -> None:
    clips = _annotations(tmp_path, 8)
    one = _clusters(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]], "one.json")
    two = _clusters(tmp_path, [[0, 4, 1, 5], [2, 6, 3, 7]], "two.json")
    epochs = _weave(clips, tmp_path, videos_per_example=4, method="visual", clusters=[one, two])
    assert [_groups(epochs, e) for e in range(3)] == [
        {frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})},
        {frozenset({0, 4, 1, 5}), frozenset({2, 6, 3, 7})},
        {frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})},
    ]
    small = _weave(clips, tmp_path, videos_per_example=4, curriculum=(1, 2), method="visual", clusters=one)
    assert [len(small[e]) for e in range(3)] == [8, 4, 2]
    assert all(max(g) < 4 or min(g) >= 4 for g in _groups(small, 1))


def test_clusters_of_embeddings_are_made_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = _annotations(tmp_path, 12)
    rng = np.random.default_rng(0)
    folder = tmp_path / "embeddings"
    folder.mkdir()
    centres = rng.normal(size=(3, 16))
    vectors = np.concatenate([centres[[i % 3]] + 0.05 * rng.normal(size=(1, 16)) for i in range(14)])
    np.save(folder / "embeddings.npy", vectors.astype(np.float16))
    # v12 and v13 are no clips of the training file: validation, say.
    (folder / "ids.txt").write_text("".join(f"v{i}\n" for i in range(14)))
    with caplog.at_level(logging.INFO):
        first = _weave(clips, tmp_path, videos_per_example=4, method="visual", clusters=folder)
    assert "clustering 12 clips by 4" in caplog.text
    assert _groups(first, 0) == {frozenset(range(k, 12, 3)) for k in range(3)}
    (cached,) = (folder / CACHE).iterdir()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = _weave(clips, tmp_path, videos_per_example=4, method="visual", clusters=folder)
    assert "clustering" not in caplog.text and list(again[1]) == list(first[1])
    cached.write_bytes(b"half")
    with caplog.at_level(logging.INFO):
        mended = _weave(clips, tmp_path, videos_per_example=4, method="visual", clusters=folder)
    assert "cannot be read" in caplog.text and list(mended[1]) == list(first[1])


def test_what_is_refused(tmp_path: Path) -> None:
    clips = _annotations(tmp_path, 8)
    four = _clusters(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    beyond = _clusters(tmp_path, [[0, 9], [1, 2]], "beyond.json")
    uneven = _clusters(tmp_path, [[0, 1, 2], [4, 5]], "uneven.json")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"videos_per_example": -1}, "count clips: 1 or more"),
        ({"videos_per_example": 0, "form": "ordered"}, r"--dataset\.weave\.form does nothing without"),
        ({"form": "orderd"}, "did you mean 'ordered'"),
        ({"method": "visul", "clusters": four}, "did you mean 'visual'"),
        ({"method": "visual"}, r"--dataset\.weave\.method visual: .*--embeddings .* here --dataset\.weave\.clusters"),
        ({"clusters": four}, r"--dataset\.weave\.method random takes no clusters"),
        ({"total_frames": 1}, r"--dataset\.weave\.total_frames 1 leaves a video without a frame"),
        ({"videos_per_example": 9, "total_frames": 9}, "8 clips make no example"),
        ({"videos_per_example": 3, "method": "visual", "clusters": four}, "clusters of 4 cannot be cut into"),
        ({"method": "visual", "clusters": beyond}, r"1 of its videos are no clips of .*clips\.json, the first: v9"),
        ({"method": "visual", "clusters": uneven}, r"expected clusters of one size, got sizes \[2, 3\]"),
        ({"method": "visual", "clusters": tmp_path / "gone.json"}, "no such file"),
        ({"prompts": empty}, "holds no question"),
    ]
    for options, said in cases:
        with pytest.raises(ValueError, match=said):
            _weave(clips, tmp_path, **options)
    with pytest.raises(ValueError, match="it takes one file of clips; the dataset names 2"):
        _weave([clips, clips], tmp_path)
    rows = json.loads(clips.read_text())
    rows[2]["video"] = ["a.mp4", "b.mp4"]
    clips.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"clips\.json, row 3: .*this one has 2 media and 2 turns"):
        _weave(clips, tmp_path)


def test_validation_clips_are_not_woven_into_training(tmp_path: Path) -> None:
    woven = _weave(_annotations(tmp_path, 8), tmp_path)
    refuse_shared_clips(woven, [load_records(_annotations(tmp_path, 4, "val.json", first=8), tmp_path)])
    shared = [load_records(_annotations(tmp_path, 4, "val.json", first=6), tmp_path)]
    with pytest.raises(ValueError, match=r"2 clips of .* are also in the validation data, the first: v6, v7"):
        refuse_shared_clips(woven, shared)
    with pytest.raises(ValueError, match="2 clips of"):
        refuse_shared_clips(woven, _weave(tmp_path / "val.json", tmp_path))
