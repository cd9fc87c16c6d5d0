"""Folders of frames: ids that lie inside each other, and folders that something else has made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prismatic.conf.webvid_media import ExtractConfig
from prismatic.video.decode import open_video
from prismatic.webvid.extract import append_failures, extract, read_failures
from prismatic.webvid.frame_folders import FolderJob, folder_of
from prismatic.webvid.frames import FrameSpec
from tests.webvid.heap import make_catalog, write_heap
from tests.webvid.videos import write_video


def _frames_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("order", [("y", "y/b"), ("y/b", "y")])
def test_ids_inside_each_other_keep_both_folders(order: tuple[str, str], tmp_path: Path) -> None:
    write_video(tmp_path / "v/y.mp4", frames=4)
    write_video(tmp_path / "v/y/b.mp4", frames=3, shade=90)
    job = FolderJob(str(tmp_path / "v"), str(tmp_path / "f"), FrameSpec(2))
    for clip_id in order:
        job.read((clip_id, f"{clip_id}.mp4"))
    for clip_id in order:
        assert _frames_in(tmp_path / "f" / clip_id) == ["0000.png", "0001.png", "manifest.json"]
        with open_video(tmp_path / "f" / clip_id) as clip:
            assert len(clip) == 2
    assert not list((tmp_path / "f").glob(".*"))


def test_pictures_of_an_older_tool_are_replaced_and_other_files_stay(tmp_path: Path) -> None:
    make_catalog(tmp_path, write_heap(tmp_path / "v", 1))
    old = tmp_path / "f/000"
    (old / "notes").mkdir(parents=True)
    (old / "notes/page.png").write_bytes(b"mine")
    (old / "README.txt").write_text("mine")
    for name in ("0000.png", "0001.png", "0002.png", "0003.jpg"):
        (old / name).write_bytes(b"older")
    told = extract(ExtractConfig(catalog=tmp_path / "c.parquet", num_frames=2, output=tmp_path / "f"))
    assert "1 done now" in told
    assert _frames_in(old) == ["0000.png", "0001.png", "README.txt", "manifest.json"]
    assert (old / "notes/page.png").read_bytes() == b"mine"
    with open_video(old) as clip:
        assert len(clip) == 2


def test_no_two_ids_have_one_folder(tmp_path: Path) -> None:
    for bad in ("a/", "a//b", "./a", "a/./b"):
        with pytest.raises(ValueError, match="cannot be the name of a folder"):
            folder_of(tmp_path, bad)


def test_a_list_of_failures_that_a_kill_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "failed.jsonl"
    append_failures(file, {"a": "gone", "b": "two\u2028lines"})
    append_failures(file, {"a": "still gone"})
    with file.open("a") as out:
        out.write('{"id": "c", "rea')
    assert read_failures(file) == {"a": "still gone", "b": "two\u2028lines"}
    assert json.loads(file.read_text().split("\n")[0]) == {"id": "a", "reason": "gone"}


def test_failures_are_kept_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismatic.webvid import extract as module

    make_catalog(tmp_path, write_heap(tmp_path / "v", 4))
    for path in (tmp_path / "v").iterdir():
        path.write_bytes(b"went bad")
    monkeypatch.setattr(module, "BATCH", 1)
    real, calls = module.append_failures, []

    def stop(file: Path, failed: dict[str, str]) -> None:
        real(file, failed)
        calls.append(failed)
        if len(calls) == 2:
            raise KeyboardInterrupt

    cfg = ExtractConfig(catalog=tmp_path / "c.parquet", num_frames=2, output=tmp_path / "f")
    with monkeypatch.context() as patch:
        patch.setattr(module, "append_failures", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(cfg)
    assert list(read_failures(tmp_path / "f/failed.jsonl")) == ["000", "001"]
    assert "4 videos: 0 done now, 0 from before, 4 failed" in extract(cfg)
    assert list(read_failures(tmp_path / "f/failed.jsonl")) == ["000", "001", "002", "003"]
