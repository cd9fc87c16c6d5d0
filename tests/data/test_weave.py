"""Online weaving: which clips meet, what an example holds, and that all of it follows from (seed, epoch, index)."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from prismatic.data.annotations import RecordTable
from prismatic.data.weave import Recipe, WovenEpochs, split_frames
from prismatic.types import Medium, Record, Turn


def _clip(number: int, medium: Medium | None = None) -> Record:
    medium = medium or Medium("video", (f"clips/{number}.mp4",))
    return Record(f"v{number}", (medium,), (Turn("human", "<video>"), Turn("gpt", f"cap{number}")), f"row {number}")


def _tell(clips: Any, prompt: str, rng: np.random.Generator) -> tuple[str, str]:
    return f"{prompt} {int(rng.integers(1000))}", " | ".join(f"{c.caption}:{c.num_frames}:{c.duration}" for c in clips)


def _epochs(
    count: int = 13, size: int = 4, total: int = 8, clusters: np.ndarray | None = None, **more: Any
) -> WovenEpochs:
    table = np.arange(count, dtype=np.int32)[None, :] if clusters is None else clusters
    recipe = Recipe(_tell, more.pop("prompts", ("Q",)), total, size, more.pop("curriculum", ()))
    clips = RecordTable(_clip(i) for i in range(count))
    return WovenEpochs(clips, lambda epoch, size: table, recipe, **{"seed": 3, "name": "clips.json", **more})


def test_an_example() -> None:
    row = _epochs(total=9)[0][0]
    numbers = [int(i[1:]) for i in row.id.split(", ")]
    assert [m.paths[0] for m in row.media] == [f"clips/{n}.mp4" for n in numbers]
    assert [m.num_frames for m in row.media] == [3, 2, 2, 2] == split_frames(9, 4)
    question, answer = row.turns
    assert question.role == "human" and question.text.startswith("<video>\n" * 4 + "Q ")
    assert answer.text == " | ".join(f"cap{n}:{t}:None" for n, t in zip(numbers, (3, 2, 2, 2), strict=True))
    assert row.source == f"clips.json, woven example 1 of epoch 0 (clips {row.id})"


def test_an_epoch_shows_each_clip_once_and_leaves_out_the_rest() -> None:
    epochs = _epochs()
    seen = []
    for epoch in range(20):
        ids = [i for row in epochs[epoch] for i in row.id.split(", ")]
        assert len(epochs[epoch]) == 3 and len(ids) == len(set(ids)) == 12
        seen.append(tuple(ids))
    assert len(set(seen)) == 20, "two epochs are the same weave"
    left_out = {next(iter({f"v{i}" for i in range(13)} - set(ids))) for ids in seen}
    assert len(left_out) > 5, "it is always the same clip that is left out"


def test_rows_follow_from_seed_epoch_and_index_alone() -> None:
    whole = [list(_epochs()[epoch]) for epoch in range(3)]
    backwards = _epochs()
    assert [backwards[2][1], backwards[0][2], backwards[2][0], backwards[1][0]] == [
        *(whole[2][1], whole[0][2], whole[2][0], whole[1][0])
    ]
    assert list(_epochs(seed=4)[0]) != whole[0]
    rows = _epochs()[0]
    assert rows[-1] == rows[2] and rows[1:] == [rows[1], rows[2]]
    with pytest.raises(IndexError):
        rows[3]


def test_clusters_stay_together_and_larger_ones_are_cut_anew() -> None:
    clusters = np.array([[0, 2, 4, 6], [1, 3, 5, 7]], np.int32)
    for size in (4, 2):
        pairs = set()
        for epoch in range(12):
            rows = [[int(i[1:]) for i in row.id.split(", ")] for row in _epochs(8, size, clusters=clusters)[epoch]]
            assert sorted(n for row in rows for n in row) == list(range(8))
            assert all(len({n % 2 for n in row}) == 1 for row in rows)
            pairs |= {frozenset(row) for row in rows}
        assert len(pairs) == (2 if size == 4 else 12)


def test_curriculum() -> None:
    epochs = _epochs(12, 4, curriculum=(1, 2))
    assert [epochs.recipe.videos(e) for e in range(5)] == [1, 2, 4, 4, 4]
    assert [len(epochs[e]) for e in range(5)] == [12, 6, 3, 3, 3]
    assert [len(rows) for rows in epochs] == [12, 6, 3] and len(epochs) == 3
    assert [m.num_frames for m in epochs[0][0].media] == [8]


def test_media_of_other_kinds_and_durations() -> None:
    frames = Medium("frames", tuple(f"{i}.png" for i in range(16)))
    clips = [_clip(0, frames), _clip(1, Medium("image", ("a.png",)))]
    recipe = Recipe(_tell, ("Q",), 8, 2)
    table = np.arange(2)[None, :]
    durations = np.array([4.0, np.nan])
    row = WovenEpochs(clips, lambda epoch, size: table, recipe, seed=0, durations=durations)[0][0]
    media = dict(zip(row.id.split(", "), row.media, strict=True))
    assert media["v0"].paths == ("0.png", "5.png", "10.png", "15.png") and media["v1"].paths == ("a.png",)
    assert "cap0:4:4.0" in row.turns[1].text and "cap1:4:None" in row.turns[1].text


def test_prompts_are_drawn() -> None:
    rows = _epochs(400, 4, prompts=("One", "Two"))[0]
    said = [row.turns[0].text.split("\n")[-1].split()[0] for row in rows]
    assert 30 < said.count("One") < 70 and said.count("One") + said.count("Two") == 100


def test_no_room_or_no_example() -> None:
    with pytest.raises(ValueError, match=r"--dataset\.weave\.total_frames 3 leaves a video without a frame"):
        _epochs(total=3)
    with pytest.raises(ValueError, match=r"clips\.json: 3 clips make no example"):
        _epochs(3)


def test_another_process_gets_the_same() -> None:
    """Where processes cannot be forked, a worker gets a pickled copy."""
    epochs = WovenEpochs(
        [_clip(i) for i in range(8)], _Everyone(), Recipe(_tell, ("Q",), 8, 2), seed=1, durations=np.ones(8)
    )
    assert pickle.loads(pickle.dumps(epochs))[5][2] == epochs[5][2]


class _Everyone:
    def __call__(self, epoch: int, size: int) -> np.ndarray:
        return np.arange(8)[None, :]
