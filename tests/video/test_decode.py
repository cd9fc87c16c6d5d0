"""The door: which paths are videos, which decoder opens what, and what is said of files that are none."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from prismatic.registry import UnknownIdError
from prismatic.video.decode import DECODERS, MediaError, is_video, open_video
from tests.video.files import truncate, write_audio_only

Video = Callable[[str], Path]


def test_videos_are_known_by_extension() -> None:
    assert all(
        is_video(f"folder.png/clip{e}") for e in (".mp4", ".AVI", ".Mov", ".mkv", ".FLV", ".wmv", ".webm", ".m4v")
    )
    assert not any(is_video(p) for p in ("clip.gif", "clip.ts", "clip.mp4.jpg", "mp4", "clip"))


def test_decoders_by_id() -> None:
    assert DECODERS.names() == ["pyav", "torchcodec", "decord", "frame-folder"]
    with pytest.raises(UnknownIdError, match="did you mean 'decord'"):
        open_video("clip.mp4", "decordd")
    with pytest.raises(ValueError, match="threads must be 0"):
        open_video("clip.mp4", threads=-1)


def _missing(folder: Path, video: Video) -> Path:
    return folder / "missing.mp4"


def _empty(folder: Path, video: Video) -> Path:
    (folder / "bad.mp4").write_bytes(b"")
    return folder / "bad.mp4"


def _text(folder: Path, video: Video) -> Path:
    (folder / "bad.mp4").write_text("this is no video\n" * 40)
    return folder / "bad.mp4"


def _noise(folder: Path, video: Video) -> Path:
    (folder / "bad.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    return folder / "bad.mp4"


def _playlist(folder: Path, video: Video) -> Path:
    # FFmpeg would follow it, to other files and to the network.
    shutil.copy(video("h264-mp4"), folder / "other.mp4")
    (folder / "bad.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with av.open(str(folder / "bad.mp4")) as followed:
        assert followed.streams.video
    return folder / "bad.mp4"


def _without_index(folder: Path, video: Video) -> Path:
    return truncate(video("h264-mp4"), folder / "bad.mp4", 0.5)


def _audio(folder: Path, video: Video) -> Path:
    return write_audio_only(folder / "bad.mp4")


def _no_frames(folder: Path, video: Video) -> Path:
    with av.open(str(folder / "bad.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return folder / "bad.mkv"


def _folder(folder: Path, video: Video) -> Path:
    (folder / "bad.mp4").mkdir()
    (folder / "bad.mp4" / "notes.txt").write_text("no image")
    return folder / "bad.mp4"


def _picture(folder: Path, video: Video) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "bad.png")
    return folder / "bad.png"


BAD = {
    _missing: "no such file",
    _empty: "the file is empty",
    _text: "is no video, is damaged, or was cut off",
    _noise: "is no video, is damaged, or was cut off",
    _playlist: "is no video",
    _without_index: "was cut off before its index",
    _audio: r"has no video stream \(it holds: audio\)",
    _no_frames: "not a single frame|is no video",
    _folder: r"a folder with no image in it \(1 other files",
    _picture: "is no video",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_files_are_named_with_the_reason(make: Callable[[Path, Video], Path], tmp_path: Path, video: Video) -> None:
    path = make(tmp_path, video)
    with pytest.raises(MediaError, match=BAD[make]) as caught:
        open_video(path)
    assert str(path) in str(caught.value)
    assert "decoder '" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # a loader's worker sends it to its parent
    assert (str(again), type(again)) == (str(caught.value), MediaError)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_no_permission(tmp_path: Path, video: Video) -> None:
    path = truncate(video("h264-mp4"), tmp_path / "locked.mp4", 1.0)
    path.chmod(0)
    with pytest.raises(MediaError, match="no permission"):
        open_video(path)


def test_damaged_bytes_give_frames_or_a_media_error(tmp_path: Path, video: Video) -> None:
    rng = np.random.default_rng(11)
    opened = 0
    for kind in ("h264-mp4", "vp9-webm", "mpeg4-avi", "h264-ts", "wmv2-wmv", "gif"):
        source = np.frombuffer(video(kind).read_bytes(), np.uint8)
        for attempt in range(8):
            content = source.copy()
            places = rng.integers(0, len(content), 12 if attempt % 2 else 2)
            content[places] = rng.integers(0, 256, len(places))
            path = tmp_path / f"{attempt}{video(kind).suffix}"
            content.tofile(path)
            try:
                with open_video(path) as clip:
                    assert clip.get([0, len(clip) // 2, len(clip) - 1]).shape[0] == 3
                opened += 1
            except MediaError:
                continue
    assert 10 < opened


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_file_stays_open(tmp_path: Path, video: Video) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    bad = [_text(tmp_path, video), video("truncated-mp4"), _without_index(tmp_path, video)]
    open_video(video("h264-ts")).close()
    before = handles()
    for _ in range(5):
        with open_video(video("h264-ts")) as clip:
            clip.get([0, 40, 10])
        for path in bad:
            try:
                open_video(path).close()
            except MediaError:
                continue
    assert handles() == before


def test_importing_the_door_loads_no_decoder_and_no_torch() -> None:
    heavy = ["av", "decord", "torchcodec", "torch"]
    code = f"import sys, prismatic.video.decode; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
