"""Clips in tar shards and behind URLs: the same frames as files give, and clear words for what is damaged."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from prismatic.video.decode import DecoderMissingError, MediaError, open_frames, open_video, read_image
from prismatic.video.shards import INDEX_SUFFIX, read_index
from tests.video.files import code_frame, read_code, write_video


def _png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(code_frame(index)).save(file, "PNG")
    return file.getvalue()


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of another tool: two clips of frames, one video, and a caption alone."""
    video = write_video(tmp_path / "v.mp4", "libx264", 8, options={"threads": "1"})
    members = {f"a.{i:04d}.png": _png(i) for i in (1, 0, 2)}
    members |= {f"dir/b.{i}.png": _png(20 + i) for i in range(12)}
    members |= {"a.json": b'{"indices": [0, 10, 20], "num_frames": 21, "fps": 5}', "dir/b.json": b"no json"}
    members |= {"c.mp4": video.read_bytes(), "c.txt": b"a caption", "d.txt": b"alone"}
    return _tar(tmp_path / "000000.tar", members)


@pytest.mark.parametrize("place", ["{}", "file://{}", "memory://shards/000000.tar"])
def test_a_shard_without_an_index(shard: Path, place: str) -> None:
    fsspec.filesystem("memory").pipe("/shards/000000.tar", shard.read_bytes())
    tar = place.format(shard)
    with open_video(f"{tar}#a") as clip:
        assert clip.timestamps.tolist() == [0.0, 2.0, 4.0]
        assert [read_code(f) for f in clip.get([2, 0])] == [2, 0]
    with open_video(f"{tar}#dir/b") as clip:
        assert (len(clip), clip.fps) == (12, 1.0)
        assert read_code(clip.get([11])[0]) == 31
    with open_video(f"{tar}#c") as clip, open_video(shard.with_name("v.mp4")) as video:
        assert clip.source == f"{tar}#c"
        assert np.array_equal(clip.get(range(8)), video.get(range(8)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("000000.tar#nobody", "the shard has no clip 'nobody' \\(4 others\\)"),
        ("000000.tar#d", "neither frames nor a video"),
        ("gone.tar#a", "no such shard"),
        ("text.tar#a", "no tar file"),
        ("cut.tar#a", "cut short"),
        ("index.tar#a", "is no index of a shard"),
        ("other.tar#a", "is not the shard of"),
        ("beyond.tar#a", "cut short: 0 of 9 bytes"),
        ("minus.tar#a", "cannot be"),
        ("junk.tar#a", "cannot be read as an image"),
    ],
)
def test_damage_is_named(shard: Path, name: str, said: str) -> None:
    folder = shard.parent
    (folder / "text.tar").write_text("this is no archive" * 60)
    (folder / "cut.tar").write_bytes(shard.read_bytes()[:700])

    def indexed(stem: str, content: object) -> None:
        (folder / f"{stem}.tar").write_bytes(b"\0" * 100)
        (folder / f"{stem}{INDEX_SUFFIX}").write_text(json.dumps(content))

    row = {"indices": [0], "num_frames": 1, "fps": 5.0}
    indexed("index", {"bytes": 100, "clips": {"a": {}}})
    indexed("other", {"bytes": 101, "clips": {}})
    for stem, span in {"beyond": [200, 9], "minus": [-1, 9], "junk": [0, 50]}.items():
        indexed(stem, {"bytes": 100, "clips": {"a": {**row, "frames": [span]}}})
    with pytest.raises(MediaError, match=said):
        open_video(f"{folder}/{name}").get([0])


def test_a_shard_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    tar = _tar(tmp_path / "x.tar", {"a.0.png": _png(1)})
    assert list(read_index(str(tar))) == ["a"]
    _tar(tar, {"a.0.png": _png(1), "b.0.png": _png(2), **{f"c.{i}.png": _png(i) for i in range(40)}})
    assert list(read_index(str(tar))) == ["a", "b", "c"]


def test_files_folders_and_pictures_by_url(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", "libx264", 6, options={"threads": "1"})
    memory = fsspec.filesystem("memory")
    memory.pipe("/m/v.mp4", video.read_bytes())
    for i in range(3):
        memory.pipe(f"/m/frames/{i}.png", _png(i))
    memory.pipe("/m/frames/manifest.json", b'{"indices": [0, 4, 8], "num_frames": 9, "fps": 2}')
    memory.pipe("/m/bad.mp4", b"no video at all")
    with open_video("memory://m/v.mp4") as clip, open_video(video) as local:
        assert clip.source == "memory://m/v.mp4"
        assert np.array_equal(clip.get([5, 1]), local.get([5, 1]))
    with open_video("memory://m/frames") as clip:
        assert clip.timestamps.tolist() == [0.0, 2.0, 4.0]
        assert read_code(clip.get([2])[0]) == 2
    with open_frames([f"memory://m/frames/{i}.png" for i in (1, 0)]) as clip:
        assert [read_code(f) for f in clip.get([0, 1])] == [1, 0]
    assert read_code(read_image("memory://m/frames/1.png")[0]) == 1
    with pytest.raises(MediaError, match=r"memory://m/bad.mp4: decoder 'pyav': is no video"):
        open_video("memory://m/bad.mp4")
    with pytest.raises(MediaError, match=r"memory://m/gone.mp4: decoder 'storage': no such file"):
        open_video("memory://m/gone.mp4")
    with pytest.raises((MediaError, DecoderMissingError), match=r"nosuch://x/v.mp4"):
        open_video("nosuch://x/v.mp4")
