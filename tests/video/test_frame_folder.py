"""Frames that lie in a folder or a list: order, manifest, odd sizes, and what is said of a folder without images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismatic.video.decode import MediaError, open_frames, open_video
from prismatic.video.sampling import ClipFacts, sample
from tests.video.files import code_frame, read_code


def fill(folder: Path, count: int, name: str = "frame{}.png") -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(code_frame(i)).save(folder / name.format(i))
    return folder


@pytest.mark.parametrize("decoder", ["pyav", "frame-folder", "decord"])
def test_folder_is_a_clip_in_natural_order(tmp_path: Path, decoder: str) -> None:
    folder = fill(tmp_path / "clip.mp4", 12)
    (folder / "caption.txt").write_text("not a frame")
    (folder / "._frame0.png").write_bytes(b"what macOS leaves in archives")
    with open_video(folder, decoder) as clip:
        assert (len(clip), clip.width, clip.height, clip.fps) == (12, 128, 96, 1.0)
        assert [read_code(f) for f in clip.get([11, 2, 2, 10])] == [11, 2, 2, 10]
        assert np.array_equal(clip.get([7])[0], code_frame(7))


def test_jpegs_and_names_of_mixed_case(tmp_path: Path) -> None:
    folder = fill(tmp_path / "clip", 3, "Frame_{}.JPG")
    with open_video(folder) as clip:
        assert [read_code(f) for f in clip.get([0, 1, 2])] == [0, 1, 2]


def test_manifest_gives_the_times(tmp_path: Path) -> None:
    folder = fill(tmp_path / "clip", 4)
    (folder / "manifest.json").write_text(json.dumps({"indices": [0, 33, 66, 99], "num_frames": 100, "fps": 25}))
    with open_video(folder) as clip:
        assert np.allclose(clip.timestamps, [0, 1.32, 2.64, 3.96])
        assert clip.fps == pytest.approx(25 / 33)
        facts = ClipFacts.of(clip)
        assert sample(facts, 2, "uniform", np.random.default_rng(0)).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("{", "cannot be read"),
        ("[1, 2]", "must be an object"),
        ('{"indices": [0, 1, 2], "num_frames": 9}', "lists 3 frames, the folder has 4 images; extract it again"),
        ('{"indices": [0, 1, 5, 2], "num_frames": 9}', "must ascend"),
        ('{"indices": [0, 1, 2, 9], "num_frames": 9}', "stay below 9"),
        ('{"indices": [0, 1, 2, 3], "fps": -1}', "'fps' above 0"),
        ('{"indices": "0123"}', "whole numbers"),
    ],
)
def test_manifest_that_does_not_fit(tmp_path: Path, manifest: str, reason: str) -> None:
    folder = fill(tmp_path / "clip", 4)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(MediaError, match=reason):
        open_video(folder)


def test_list_of_images_in_the_order_given(tmp_path: Path) -> None:
    folder = fill(tmp_path / "clip", 3)
    with open_frames([folder / f"frame{i}.png" for i in (2, 0, 1)]) as clip:
        assert [read_code(f) for f in clip.get([0, 1, 2])] == [2, 0, 1]
        assert clip.timestamps.tolist() == [0.0, 1.0, 2.0]


def test_image_of_another_size_keeps_its_proportions(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), (9, 9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 60), (200, 100, 50)).save(tmp_path / "b.png")
    with open_frames([tmp_path / "a.png", tmp_path / "b.png"]) as clip:
        frame = clip.get([1])[0]
    assert frame.shape == (50, 100, 3)
    assert (frame[:, 38:62] == (200, 100, 50)).all(), "25 x 50, in the middle"
    assert not frame[:, :37].any()
    assert not frame[:, 63:].any()


def test_lists_and_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="the list is empty"):
        open_frames([])
    with pytest.raises(MediaError, match=r"gone\.png: decoder 'image': no such file"):
        open_frames([tmp_path / "gone.png"])
    (tmp_path / "file.mp4").write_text("x")
    with pytest.raises(MediaError, match=r"not a folder of frames; use --dataset\.decoder pyav"):
        open_video(tmp_path / "file.mp4", "frame-folder")
    folder = fill(tmp_path / "clip", 2)
    (folder / "frame1.png").write_bytes((folder / "frame1.png").read_bytes()[:60])
    with open_video(folder) as clip, pytest.raises(MediaError, match=r"frame1\.png.*cannot be read as an image"):
        clip.get([0, 1])
