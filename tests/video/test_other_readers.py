"""decord and torchcodec: exact, or refused with what to type instead."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prismatic.video.decode import DecoderMissingError, MediaError, open_video
from tests.video.files import KINDS

Video = Callable[[str], Path]

DECORD_REFUSES = {
    "h264-ts": "hangs",
    "mpeg2-ts": "hangs",
    "mpeg2-mpg": "hangs",
    "interlaced-mpg": "hangs",
    "wmv2-wmv": "hangs or returns other frames",
    "vp8-webm": "codec 'vp8'",
    "odd-size-webm": "codec 'vp8'",
    "no-cues-mkv": "cannot be opened",
    "vp9-webm": "codec 'vp9'",
    "vp9-altref-webm": "codec 'vp9'",
    "av1-mp4": "codec 'av1'",
    "gif": "codec 'gif'",
    "theora-ogv": "cannot be opened",
    "mjpeg-avi": "codec 'mjpeg'",
    "cut-mp4": "edit list",
    "truncated-mp4": "cut short",
    "open-gop-mp4": "open",
    "hevc-mp4": "open",
    "h264-avi": "no times of showing",
    "mpeg4-b-avi": "open|no times of showing",
}
TORCHCODEC_REFUSES = {
    "h264-ts": "other frames",
    "mpeg2-ts": "other frames",
    "mpeg2-mpg": "other frames",
    "interlaced-mpg": "other frames",
    "truncated-mp4": "counts 32 frames where 31 are shown",
    "h264-avi": "no times of showing",
    "mpeg4-b-avi": "no times of showing",
}


def exact_or_refused(decoder: str, path: Path, refusal: str | None) -> None:
    if refusal is not None:
        with pytest.raises(MediaError, match=refusal) as caught:
            open_video(path, decoder)
        assert f"decoder '{decoder}'" in str(caught.value)
        assert str(caught.value).endswith("use --dataset.decoder pyav")
        return
    with open_video(path) as ours, open_video(path, decoder) as theirs:
        assert len(ours) == len(theirs)
        assert np.array_equal(ours.timestamps, theirs.timestamps)
        rng = np.random.default_rng(2)
        for indices in (np.linspace(0, len(ours) - 1, 8).astype(int), rng.integers(0, len(ours), 5)):
            assert np.array_equal(ours.get(indices), theirs.get(indices))


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "refresh-mp4"])
def test_decord(kind: str, video: Video) -> None:
    exact_or_refused("decord", video(kind), DECORD_REFUSES.get(kind))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "refresh-mp4"])
def test_torchcodec(kind: str, video: Video) -> None:
    try:
        open_video(video("h264-mp4"), "torchcodec").close()
    except DecoderMissingError as error:
        pytest.skip(str(error))
    exact_or_refused("torchcodec", video(kind), TORCHCODEC_REFUSES.get(kind))


@pytest.mark.parametrize("package", ["decord", "torchcodec"])
def test_missing_package(package: str, video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [package, f"{package}.decoders"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DecoderMissingError, match=f"--dataset.decoder {package}.*pip install.*--dataset.decoder pyav"):
        open_video(video("h264-mp4"), package)


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
def test_bad_file_is_reported_once_for_all_decoders(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match=r"text\.mp4.*is no video"):
        open_video(tmp_path / "text.mp4", "decord")
