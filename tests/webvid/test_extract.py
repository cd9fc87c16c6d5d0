"""Frames in folders and shards: what is in them, what is done again, and that a kill changes no byte."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismatic.conf.webvid_media import ExtractConfig
from prismatic.types import ImageSpec
from prismatic.video.decode import open_video
from prismatic.video.images import read_image
from prismatic.video.transforms import resize
from prismatic.webvid import extract as extract_module
from prismatic.webvid import frames as frames_module
from prismatic.webvid.extract import extract
from prismatic.webvid.frame_folders import folder_of
from prismatic.webvid.frames import FrameSpec, square_of, take_frames
from prismatic.webvid.tar_shards import key_of
from tests.webvid.heap import make_catalog, tree, write_heap
from tests.webvid.videos import write_video


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nine videos v/000.mp4, ... and their catalog c.parquet."""
    root = tmp_path_factory.mktemp("heap")
    make_catalog(root, write_heap(root / "v", 9))
    return root


def _cfg(heap: Path, output: Path, form: str = "folder", **changes: object) -> ExtractConfig:
    flags = {"num_frames": 3, "clips_per_shard": 4, **changes}
    return ExtractConfig(catalog=heap / "c.parquet", format=form, output=output, **flags)  # type: ignore[arg-type]


def _frames(path: Path, count: int = 3) -> np.ndarray:
    with open_video(path) as clip:
        return clip.get(np.linspace(0, len(clip) - 1, min(count, len(clip))).astype(int))


def test_folders_hold_exactly_the_frames_of_the_video(heap: Path, tmp_path: Path) -> None:
    told = extract(_cfg(heap, tmp_path / "f"))
    assert "9 videos: 9 done now, 0 from before, 0 failed" in told
    for i in range(9):
        with open_video(tmp_path / f"f/{i:03d}") as stored, open_video(heap / f"v/{i:03d}.mp4") as video:
            assert np.array_equal(stored.get(range(3)), _frames(heap / f"v/{i:03d}.mp4"))
            indices = json.loads((tmp_path / f"f/{i:03d}/manifest.json").read_text())["indices"]
            assert np.allclose(stored.timestamps, np.array(indices) / video.fps)
    assert "0 done now, 9 from before" in extract(_cfg(heap, tmp_path / "f"))


def test_the_manifest_names_the_keyframes_that_were_taken(heap: Path, tmp_path: Path) -> None:
    extract(_cfg(heap, tmp_path / "f", sampler="keyframes", num_frames=1))
    for i in range(9):
        with open_video(tmp_path / f"f/{i:03d}") as stored, open_video(heap / f"v/{i:03d}.mp4") as video:
            indices = json.loads((tmp_path / f"f/{i:03d}/manifest.json").read_text())["indices"]
            assert set(indices) <= set(video.keyframes.tolist())
            assert np.array_equal(stored.get([0]), video.get(indices))


def test_shards_give_the_frames_of_the_folders(heap: Path, tmp_path: Path) -> None:
    extract(_cfg(heap, tmp_path / "f"))
    told = extract(_cfg(heap, tmp_path / "s", "shards"))
    assert "9 videos: 9 done now" in told
    assert sorted(p.name for p in (tmp_path / "s").glob("*.tar")) == ["000000.tar", "000001.tar", "000002.tar"]
    for i in range(9):
        with (
            open_video(f"{tmp_path}/s/{i // 4:06d}.tar#{i:03d}") as shard,
            open_video(tmp_path / f"f/{i:03d}") as folder,
        ):
            assert (shard.width, shard.height, shard.fps) == (folder.width, folder.height, folder.fps)
            assert np.array_equal(shard.timestamps, folder.timestamps)
            assert np.array_equal(shard.get([2, 0]), folder.get([2, 0]))


def test_webdataset_reads_the_shards(heap: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    extract(_cfg(heap, tmp_path / "s", "shards", image_format="jpeg", short_side=16))
    samples = list(webdataset.WebDataset(str(tmp_path / "s/000000.tar"), shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in samples] == ["000", "001", "002", "003"]
    assert min(Image.open(io.BytesIO(samples[1]["0002.jpg"])).size) == 16
    assert json.loads(samples[1]["json"])["indices"] == [0, 1, 3]


@pytest.mark.parametrize("image", ["png", "ppm", "jpeg"])
@pytest.mark.parametrize(
    ("strategy", "crop_pct"), [("letterbox", 1.0), ("letterbox", 0.875), ("resize-naive", 0.9), ("resize-crop", 1.0)]
)
def test_stored_squares_are_what_training_makes_of_the_video(
    image: str, strategy: str, crop_pct: float, heap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ImageSpec(28, mean=(0.48, 0.45, 0.40), crop_pct=crop_pct)
    monkeypatch.setattr(frames_module, "image_spec", lambda name: spec)
    store = FrameSpec(3, image_format=image, square=square_of("some-vit", strategy), resize_strategy=strategy)
    for i in range(4):
        data = take_frames(heap / f"v/{i:03d}.mp4", store).data
        kept = np.concatenate([read_image("memory", picture) for picture in data])
        made = resize(kept, spec, strategy).numpy().astype(int)
        live = resize(_frames(heap / f"v/{i:03d}.mp4"), spec, strategy).numpy()
        assert kept.shape[1] == kept.shape[2]
        assert np.abs(made - live).max() <= (12 if image == "jpeg" else 0)


def test_squares_that_would_be_cropped_twice_are_refused(heap: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(frames_module, "image_spec", lambda name: ImageSpec(28, crop_pct=0.9))
    squares = {"vision_backbone_id": "some-vit", "image_resize_strategy": "resize-crop"}
    with pytest.raises(ValueError, match="use --short_side PIXELS"):
        extract(_cfg(heap, tmp_path / "f", **squares))


def test_squares_of_a_backbone(heap: Path, tmp_path: Path) -> None:
    spec = frames_module.image_spec("tiny-vit")
    cfg = _cfg(heap, tmp_path / "s", "shards", vision_backbone_id="tiny-vit", ids="000", image_format="ppm")
    extract(cfg)
    with open_video(f"{tmp_path}/s/000000.tar#000") as stored:
        assert stored.width == stored.height == spec.resolution
        live = resize(_frames(heap / "v/000.mp4"), spec, "letterbox")
        assert np.array_equal(resize(stored.get(range(3)), spec, "letterbox"), live)
    assert "0 done now, 1 from before" in extract(cfg)


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_a_kill_after_any_batch_changes_no_byte(
    form: str, heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_module, "BATCH", 2)
    extract(_cfg(heap, tmp_path / "whole", form))
    whole = tree(tmp_path / "whole")
    real = extract_module.ENGINES.get(_cfg(heap, tmp_path).engine)
    for stop in (0, 1, 2):
        cut = tmp_path / f"cut{stop}"

        def dying(job: object, batches: object, workers: object, stop: int = stop) -> object:
            for count, done in enumerate(real(job, batches, workers)):  # type: ignore[arg-type]
                if count == stop:
                    raise KeyboardInterrupt
                yield done

        with monkeypatch.context() as patch:
            patch.setitem(extract_module.ENGINES._entries, "local", dying)
            with pytest.raises(KeyboardInterrupt):
                extract(_cfg(heap, cut, form))
        # What a kill in the middle of a write leaves behind.
        for name in (".000001.tar.77.partial", ".abc.partial"):
            (cut / name).write_bytes(b"half")
        extract(_cfg(heap, cut, form))
        assert tree(cut) == whole


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_a_lost_machine_leaves_nothing_half_written(
    form: str, heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = extract_module.ENGINES.get("local")

    def losing(job: object, batches: object, workers: object) -> object:
        (tmp_path / "out/.000001.tar.gone.77.partial").write_bytes(b"half")
        (tmp_path / "out/.abc.partial").mkdir()
        yield from real(job, batches, workers)  # type: ignore[arg-type]

    monkeypatch.setitem(extract_module.ENGINES._entries, "local", losing)
    assert "9 done now" in extract(_cfg(heap, tmp_path / "out", form))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_a_catalog_that_grows_costs_what_is_new_and_failures_are_retried_when_asked(form: str, tmp_path: Path) -> None:
    captions = write_heap(tmp_path / "v", 5)
    make_catalog(tmp_path, captions)
    cfg = _cfg(tmp_path, tmp_path / "out", form)
    good = (tmp_path / "v/002.mp4").read_bytes()
    (tmp_path / "v/002.mp4").write_bytes(good[:100])  # it went bad after the catalog was made
    told = extract(cfg)
    assert "5 videos: 4 done now, 0 from before, 1 failed" in told
    assert "002: " in told and "--retry_failed true" in told
    failed = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").read_text().splitlines()]
    assert [row["id"] for row in failed] == ["002"]
    before = tree(tmp_path / "out")

    (tmp_path / "v/002.mp4").write_bytes(good)
    make_catalog(tmp_path, captions | write_heap(tmp_path / "v", 2, first=5))
    assert "7 videos: 2 done now, 4 from before, 1 failed" in extract(cfg)
    after = tree(tmp_path / "out")
    assert all(after[name] == data for name, data in before.items() if name not in ("plan.jsonl", "failed.jsonl"))
    cfg.retry_failed = True
    assert "7 videos: 1 done now, 6 from before, 0 failed" in extract(cfg)
    path = tmp_path / "out/002" if form == "folder" else f"{tmp_path}/out/000003.tar#002"
    with open_video(path) as clip:
        assert np.array_equal(clip.get(range(3)), _frames(tmp_path / "v/002.mp4"))


def test_ids_and_short_videos(heap: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("000\n004\n")
    assert "2 videos: 2 done now" in extract(_cfg(heap, tmp_path / "a", ids=str(tmp_path / "ids.txt"), num_frames=99))
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.is_dir()) == ["000", "004"]
    manifest = json.loads((tmp_path / "a/000/manifest.json").read_text())
    assert manifest == {"indices": [0, 1, 2], "num_frames": 3, "fps": 5.0}
    told = extract(_cfg(heap, tmp_path / "b", ids="003, nobody"))
    assert "1 videos: 1 done now" in told and "of --ids 1 are no usable videos of the catalog: nobody" in told
    (tmp_path / "ids.json").write_text("\ufeff" + json.dumps(["000", "004"]), encoding="utf-8")
    assert "2 videos: 2 done now" in extract(_cfg(heap, tmp_path / "c", ids=str(tmp_path / "ids.json")))
    many = ",".join(f"{i:03d}" for i in range(2000))  # longer than a file's name may be
    assert "9 videos: 9 done now" in extract(_cfg(heap, tmp_path / "d", ids=many))


def test_ids_that_are_no_names(tmp_path: Path) -> None:
    for bad in ("../x", "/etc/x", "a/../../x", "", ".hidden", "a\0b"):
        with pytest.raises(ValueError, match="cannot be the name of a folder"):
            folder_of(tmp_path, bad)
    assert folder_of(tmp_path, "a/b") == tmp_path / "a/b"
    assert len({key_of(i) for i in ("a.b", "a/b", "a%2Eb", "ab")}) == 4
    write_video(tmp_path / "v/x.mp4")
    make_catalog(tmp_path, {})
    shutil.rmtree(tmp_path / "v")
    (tmp_path / "v").mkdir()
    for i, bad in enumerate(("../out", "a.b")):
        write_video(tmp_path / f"v/{i}.mp4", shade=i * 50)
        (tmp_path / "t.jsonl").open("a").write(json.dumps({"id": bad, "path": f"{i}.mp4", "caption": "c"}) + "\n")
    from prismatic.conf.webvid import CatalogConfig
    from prismatic.webvid.catalog import catalog

    catalog(CatalogConfig(videos=tmp_path / "v", captions=tmp_path / "t.jsonl", output=tmp_path / "c.parquet"))
    assert "1 done now, 0 from before, 1 failed" in extract(_cfg(tmp_path, tmp_path / "f"))
    assert not (tmp_path / "out").exists()
    assert "2 done now, 0 from before, 0 failed" in extract(_cfg(tmp_path, tmp_path / "s", "shards"))
    with open_video(f"{tmp_path}/s/000000.tar#../out") as clip:
        assert len(clip) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_frames": 0}, "--num_frames must be at least 1"),
        ({"format": "zip"}, "--format must be folder or shards, got 'zip'"),
        ({"image_format": "gif"}, "--image_format must be png or jpeg"),
        ({"quality": 0}, "--quality must be from 1 to 100"),
        ({"short_side": 16, "vision_backbone_id": "tiny-vit"}, "leave one out"),
        ({"image_resize_strategy": "resize-crop"}, "does nothing without --vision_backbone_id"),
        ({"vision_backbone_id": "tiny-vitt"}, "did you mean 'tiny-vit'"),
        ({"vision_backbone_id": "tiny-vit", "image_resize_strategy": "leterbox"}, "did you mean 'letterbox'"),
        ({"sampler": "unifrom"}, "did you mean 'uniform'"),
        ({"engine": "dask"}, "unknown engine 'dask' for --engine"),
        ({"ids": "nobody"}, "no row has status ok and an id of --ids"),
        ({"ids": "gone.txt"}, "--ids gone.txt: no such file"),
        ({"catalog": Path("gone.parquet")}, "--catalog gone.parquet: no such file"),
    ],
)
def test_bad_settings(heap: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    cfg = _cfg(heap, tmp_path / "x")
    for name, value in changes.items():
        setattr(cfg, name, value)
    with pytest.raises(ValueError, match=said):
        extract(cfg)


def test_other_settings_need_another_folder(heap: Path, tmp_path: Path) -> None:
    extract(_cfg(heap, tmp_path / "f", ids="000"))
    with pytest.raises(ValueError, match=r"made with other settings: num_frames 3 \(now 4\); use another"):
        extract(_cfg(heap, tmp_path / "f", num_frames=4))
