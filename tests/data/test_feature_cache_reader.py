"""Media by way of the feature cache: a hit opens nothing, and whatever changes is never served from before."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.data import feature_cache_notes as notes
from prismatic.data import feature_cache_reader as module
from prismatic.data.feature_cache import FeatureCache, FeatureCacheError
from prismatic.data.feature_cache_reader import CachedReader, ReadClip, join_clips, refuse_urls
from prismatic.data.media import MediaReader
from prismatic.data.media_paths import MediaRoot
from prismatic.types import CachedFeatures, ImageSpec, Medium
from prismatic.video.sampling import SAMPLERS, ClipFacts
from tests.video.files import write_video

SPEC = ImageSpec(resolution=8)


def _png(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def media(tmp_path: Path) -> dict[str, Medium]:
    """A medium of each kind, below tmp_path/media, as old as yesterday."""
    root = tmp_path / "media"
    for i in range(6):
        _png(root / "folder" / f"{i}.png", i)
    _png(root / "image.png", 9)
    write_video(root / "video.mp4", "mpeg4", 20)
    with tarfile.open(root / "0.tar", "w") as tar:
        for i in range(3):
            tar.add(root / "folder" / f"{i}.png", f"clip.{i:04d}.png")
        tar.add(root / "video.mp4", "film.mp4")
    return {
        "image": Medium("image", (str(root / "image.png"),)),
        "frames": Medium("frames", tuple(str(root / "folder" / f"{i}.png") for i in range(3))),
        "folder": Medium("video", (str(root / "folder"),)),
        "video": Medium("video", (str(root / "video.mp4"),)),
        "shard of frames": Medium("video", (str(root / "0.tar#clip"),)),
        "shard of a video": Medium("video", (str(root / "0.tar#film"),)),
    }


KINDS = ("image", "frames", "folder", "video", "shard of frames", "shard of a video")


def _reader(root: Path, dtype: str = "float32", encoder: str = "e", **options) -> CachedReader:
    cache = FeatureCache(root / "cache", dtype)
    read = MediaReader(num_frames=3, image_spec=SPEC)
    read = replace(read, **options)
    cache.bind({"encoder": encoder, "image_spec": repr(read.image_spec), "resize_strategy": read.resize_strategy})
    return CachedReader(read, cache)


def _tower(frames: torch.Tensor) -> torch.Tensor:
    """Stands for a backbone: each frame's pixels tell its features [F, 1, 3]."""
    return frames.double().mean(dim=(2, 3)).float()[:, None]


def _fill(reader: CachedReader, medium: Medium) -> ReadClip:
    """As training does: read, and keep what was not there."""
    clip = reader.clip(medium)
    if clip.frames is not None:
        assert clip.key
        reader.cache.put(clip.key, _tower(clip.frames).to(reader.cache.torch_dtype))
    return clip


def _forbid_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was decoded")

    for name in ("open_video", "open_frames", "read_image"):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_opens_nothing_and_has_the_features_of_the_same_frames(
    tmp_path: Path, media: dict[str, Medium], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium = media[kind]
    reader = _reader(tmp_path)
    live = reader.read.read(medium, np.random.default_rng(0))
    first = _fill(reader, medium)
    assert first.features is None and torch.equal(first.frames, live)
    _forbid_opening(monkeypatch)
    again = _reader(tmp_path).clip(medium)
    assert again.frames is None and torch.equal(again.features, _tower(live)) and again.num_frames == len(live)


def test_content_is_read_once_when_files_are_not_fresh(
    tmp_path: Path, media: dict[str, Medium], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "FRESH_SECONDS", -1.0)
    reader = _reader(tmp_path)
    for medium in media.values():
        _fill(reader, medium)
    read = []
    monkeypatch.setattr(notes, "_content", lambda medium: read.append(medium))
    assert all(reader.clip(medium).features is not None for medium in media.values()) and not read


@pytest.mark.parametrize("kind", KINDS)
def test_another_content_of_the_same_size_and_time_is_another_clip(
    tmp_path: Path, media: dict[str, Medium], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and modification time are as before, the path is the same: only the bytes differ, and the change time."""
    monkeypatch.setattr(notes, "FRESH_SECONDS", -1.0)
    reader = _reader(tmp_path)
    _fill(reader, media[kind])
    path = Path(media[kind].paths[0].partition("#")[0])
    path = sorted(path.iterdir())[2] if path.is_dir() else path
    before, content = path.stat(), bytearray(path.read_bytes())
    at = len(content) // 3
    if path.suffix == ".tar":
        at = content.find(b"ftyp") + 4 if "video" in kind else content.find(b"IDAT") + 6
    content[at] ^= 1
    time.sleep(0.02)  # coarser than the clock of file systems
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    try:
        clip = reader.clip(media[kind])
    except ValueError:
        return  # broken by the flip: read anew, at any rate
    assert clip.features is None


def test_the_same_content_elsewhere_is_the_same_clip(tmp_path: Path, media: dict[str, Medium]) -> None:
    reader = _reader(tmp_path)
    _fill(reader, media["video"])
    copy = shutil.copy(media["video"].paths[0], tmp_path / "copy.mp4")
    assert reader.clip(Medium("video", (str(copy),))).features is not None


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 4},
        {"sampler": "uniform-midpoint"},
        {"resize_strategy": "resize-naive"},
        {"image_spec": ImageSpec(resolution=10)},
        {"image_spec": ImageSpec(resolution=8, mean=(0.4, 0.5, 0.5))},
        {"dtype": "bfloat16"},
        {"encoder": "another"},
        {"decoder": "decord"},
    ],
    ids=str,
)
def test_any_other_way_to_the_features_is_a_miss(tmp_path: Path, media: dict[str, Medium], change: dict) -> None:
    if change.get("decoder"):
        pytest.importorskip("decord")
    _fill(_reader(tmp_path), media["video"])
    clip = _reader(tmp_path, **change).clip(media["video"])
    assert clip.features is None and clip.frames is not None


def test_a_row_that_asks_for_other_frames_is_a_miss(tmp_path: Path, media: dict[str, Medium]) -> None:
    reader = _reader(tmp_path)
    _fill(reader, media["video"])
    assert reader.clip(replace(media["video"], num_frames=2)).features is None
    assert reader.clip(replace(media["video"], num_frames=3)).features is not None


def test_a_sampler_that_was_changed_is_asked_again(tmp_path: Path, media: dict[str, Medium]) -> None:
    """The numbers that it chooses are in the key, not its name."""
    shift = 0

    def pick(facts: ClipFacts, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.arange(count) + shift

    SAMPLERS.add("test-shifted", pick)
    try:
        reader = _reader(tmp_path, sampler="test-shifted")
        _fill(reader, media["video"])
        assert reader.clip(media["video"]).features is not None
        shift = 5
        assert reader.clip(media["video"]).features is None
    finally:
        del SAMPLERS._entries["test-shifted"]


def test_keyframes_are_remembered(tmp_path: Path, media: dict[str, Medium], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"sampler": "keyframes", "num_frames": 2}
    live = _fill(_reader(tmp_path, **options), media["video"]).frames
    uniform = _reader(tmp_path, num_frames=2).read.read(media["video"], np.random.default_rng(0))
    assert live is not None and not torch.equal(live, uniform)
    _forbid_opening(monkeypatch)
    assert torch.equal(_reader(tmp_path, **options).clip(media["video"]).features, _tower(live))


def test_a_damaged_entry_is_computed_again_and_counted(tmp_path: Path, media: dict[str, Medium]) -> None:
    reader = _reader(tmp_path)
    for medium in media.values():
        _fill(reader, medium)
    paths = list((tmp_path / "cache").rglob("*.feat"))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-2] + b"xx")
    clips = [_fill(reader, medium) for medium in media.values()]
    assert all(clip.damaged and clip.features is None for clip in clips)
    assert join_clips(clips)[1].damaged == len(media)
    assert all(reader.clip(medium).features is not None for medium in media.values())


def test_damaged_notes_are_worked_out_again(
    tmp_path: Path, media: dict[str, Medium], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "FRESH_SECONDS", -1.0)
    reader = _reader(tmp_path)
    _fill(reader, media["video"])
    for path in [p for p in (tmp_path / "cache" / "notes").rglob("*") if p.is_file()]:
        text = path.read_bytes()
        path.write_bytes(text[:20] + bytes([text[20] ^ 1]) + text[21:])
    assert reader.clip(media["video"]).features is not None


def test_a_file_that_is_replaced_while_it_is_read_is_not_kept(
    tmp_path: Path, media: dict[str, Medium], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _reader(tmp_path)
    opened = module.open_video

    def replaced(path: str, decoder: str):  # type: ignore[no-untyped-def]
        write_video(Path(path), "mpeg4", 12)
        return opened(path, decoder)

    monkeypatch.setattr(module, "open_video", replaced)
    clip = reader.clip(media["video"])
    assert clip.frames is not None and clip.key == ""


@pytest.mark.parametrize("sampler", ["random", "random-segment"])
def test_samplers_that_draw_are_refused(tmp_path: Path, sampler: str) -> None:
    with pytest.raises(FeatureCacheError, match=f"--dataset.sampler {sampler} draws other frames"):
        _reader(tmp_path, sampler=sampler)


def test_augmentations_and_urls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureCacheError, match=r"--dataset\.augmentations"):
        _reader(tmp_path, augmentations=("color-jitter",))
    with pytest.raises(FeatureCacheError, match="local files"):
        refuse_urls(MediaRoot("memory://bucket/videos").root)
    with pytest.raises(ValueError, match="bytes of local files"):
        _reader(tmp_path).clip(Medium("video", ("memory://bucket/a.mp4",)))


def test_missing_and_broken_media_are_errors_that_name_the_file(tmp_path: Path) -> None:
    reader = _reader(tmp_path)
    with pytest.raises(OSError, match=r"gone\.mp4"):
        reader.clip(Medium("video", (str(tmp_path / "gone.mp4"),)))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4"):
        reader.clip(Medium("video", (str(tmp_path / "text.mp4"),)))


def test_clips_join_in_order() -> None:
    clips = [
        ReadClip(features=torch.zeros(2, 1, 3)),
        ReadClip(frames=torch.ones((1, 3, 8, 8), dtype=torch.uint8), key="k", damaged=True),
        ReadClip(features=torch.ones(1, 1, 3)),
    ]
    frames, cache = join_clips(clips)
    assert frames.shape == (1, 3, 8, 8) and cache.keys == (None, "k", None) and cache.damaged == 1
    both = CachedFeatures.join([cache, CachedFeatures(None, ("x",)), cache])
    assert both.keys == (None, "k", None, "x", None, "k", None) and both.features.shape == (6, 1, 3)
