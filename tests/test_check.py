"""`webvid.py validate`: every kind of problem is found, counted and told with its row; sound rows pass."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from prismatic.check import Checker, InvalidAnnotationsError, validate
from prismatic.conf.models import ModelConfig
from prismatic.conf.webvid_rows import ValidateConfig
from prismatic.data import annotation_files, row_index
from prismatic.types import Medium
from tests.webvid.videos import write_video


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("check")
    for name in "abcd":
        write_video(root / f"{name}.mp4", frames=4)
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("this is no video")
    return root


def _row(name: str, question: str = "<video>\nQ?", answer: str = "A.", **media: Any) -> dict[str, Any]:
    return {
        "id": name,
        **media,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }


def _cfg(root: Path, rows: list[Any], **values: Any) -> ValidateConfig:
    path = root / "rows.json"
    path.write_text(json.dumps(rows))
    return ValidateConfig(**{"annotations": path, "media_root": root, "num_workers": 0, **values})


def _tiny(**values: Any) -> ModelConfig:
    return ModelConfig.get_choice_class("tiny-video")(**values)


def _found(cfg: ValidateConfig, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """(the error, the report)."""
    caplog.clear()
    with caplog.at_level(logging.INFO), pytest.raises(InvalidAnnotationsError) as caught:
        validate(cfg)
    return str(caught.value), caplog.text


def test_files_that_are_not_there_are_named_by_their_flags(root: Path) -> None:
    for flag in ("annotations", "val_annotations"):
        with pytest.raises(ValueError, match=rf"--{flag} .*gone.json: no such file"):
            validate(_cfg(root, [_row("t", "Q?")], **{flag: root / "gone.json"}))


def test_large_files_are_not_read_whole(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [_row(f"r{i}", video="a.mp4") for i in range(9)]
    rows[4], rows[7] = {"id": "bad"}, _row("gone", video="gone.mp4")
    small = _found(_cfg(root, rows), caplog)
    monkeypatch.setattr(row_index, "INDEXED_FROM", 1)
    monkeypatch.setattr(annotation_files.WholeFile, "__getitem__", None)
    assert _found(_cfg(root, rows), caplog)[0] == small[0] == "2 problems in 9 rows: 1 row, 1 media"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sound_rows(root: Path, num_workers: int) -> None:
    rows = [_row("x, y", videos=["a.mp4", "b.mp4"], num_frames_per_video=2, question="<video>\n<video>\nQ?")] * 150
    rows.append(_row("text", "Q?"))
    report = validate(_cfg(root, rows, model=_tiny(num_frames=4), decode=True, num_workers=num_workers))
    assert "151 rows; media: 300 video, 1 text only" in report and "0 problems" in report
    assert "the longest row has" in report and "media files: decoded" in report


def test_every_kind_is_counted_with_its_first_rows(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        _row("0", video="a.mp4"),
        {"id": "no conversations"},
        _row("2", video="../x.mp4"),
        _row("3", "<video><video>Q?", video="a.mp4"),
        *(_row(f"gone{i}", video=f"gone{i}.mp4") for i in range(7)),
        _row("11", video="empty.mp4"),
        _row("12", video="text.mp4"),
        _row("13", "<video>\n" + "word " * 900, video="a.mp4"),
        _row("14", video="b.mp4", num_frames_per_video=3000),
    ]
    output = root / "problems.jsonl"
    cfg = _cfg(root, rows, model=_tiny(llm_max_length=128), decode=True, output=output, show=2)
    error, report = _found(cfg, caplog)
    assert error == "14 problems in 15 rows: 3 row, 8 media, 1 decode, 1 labels, 1 context"
    assert "rows.json, row 2: no `conversations`" in report and "rows.json, row 3: media path '../x.mp4'" in report
    assert "rows.json, row 5: " in report and "gone0.mp4: no such file" in report and "gone3.mp4" not in report
    assert "... and 6 more" in report
    listed = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(listed) == 14 and listed[-1]["kind"] == "context" and listed[-1]["where"].endswith("row 15")


def test_without_decode_or_model_less_is_looked_at_and_said(root: Path) -> None:
    report = validate(_cfg(root, [_row("0", "<video>\n" + "word " * 9000, video="text.mp4")]))
    assert "lengths: not looked at" in report and "looked for, not opened" in report and "not looked for" in report


def test_validation_videos_in_training_rows(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    val = root / "val.json"
    val.write_text(json.dumps([_row("v1, v2,", video="c.mp4"), _row("0", video="d.mp4"), _row("t", "Q?")]))
    sound = [_row("v3", video="a.mp4"), _row("0", video="b.mp4"), _row("t", "Q?")]
    # Rows named by their place in the file share names, not videos. "0" is row 1 here, row 2 there.
    report = validate(_cfg(root, [_row("0", video="b.mp4"), sound[0], sound[2]], val_annotations=val))
    assert "0 problems" in report
    rows = [_row("v3, v2", video="a.mp4"), _row("x", video="d.mp4")]
    error, report = _found(_cfg(root, rows, val_annotations=val), caplog)
    assert "2 leak" in error
    assert "row 1: video v2 is also in" in report and "row 2: " in report and "d.mp4 is also in" in report


def test_several_files_and_bad_settings(root: Path) -> None:
    first = _cfg(root, [_row("0", video="a.mp4")])
    other = root / "other.jsonl"
    other.write_text(json.dumps(_row("1", video="b.mp4")) + "\n")
    assert "2 rows" in validate(_cfg(root, [_row("0", video="a.mp4")], annotations=[first.annotations, other]))
    for values, said in (
        ({"annotations": root / "no.json"}, "no.json"),
        ({"stage": "tune"}, "--stage must be"),
        ({"decoder": "pav"}, "did you mean 'pyav'"),
        ({"num_workers": -1}, "--num_workers must be at least 0"),
    ):
        with pytest.raises(ValueError, match=said):
            validate(_cfg(root, [_row("0", video="a.mp4")], **values))


def test_a_process_that_dies_is_a_problem_of_its_row(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [_row(str(i), video="a.mp4" if i not in (70, 71, 140) else "b.mp4") for i in range(150)]
    sound = Checker._look_at

    def crashing(self: Checker, medium: Medium) -> tuple[str, str] | None:
        if medium.paths[0].endswith("b.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return sound(self, medium)

    monkeypatch.setattr(Checker, "_look_at", crashing)
    error, report = _found(_cfg(root, rows, decode=True, num_workers=2), caplog)
    assert error == "3 problems in 150 rows: 3 decode"
    assert all(f"row {i}: the process that looked at it died" in report for i in (71, 72, 141))


def test_media_at_a_url(root: Path) -> None:
    report = validate(_cfg(root, [_row("0", video="a.mp4")], media_root=Path(f"file://{root}"), decode=True))
    assert "1 rows; media: 1 video" in report and "0 problems" in report
