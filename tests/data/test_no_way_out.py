"""Nothing outside the media folder is opened, whatever the rows and the shards say: watched by an audit hook."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismatic.data.annotations import AnnotationError, check_media, load_records
from prismatic.data.media import MediaReader
from prismatic.types import ImageSpec
from prismatic.video.decode import MediaError, open_video
from prismatic.video.shards import INDEX_SUFFIX, index_path
from tests.audit import watched

CHAT = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """media/ with a good picture and bad links, outside/ with what must not be seen."""
    media, outside = tmp_path / "media", tmp_path / "outside"
    for folder in (media / "deep/er", outside / "frames"):
        folder.mkdir(parents=True)
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for path in (media / "good.png", media / "deep/er/good.png", outside / "secret.png", outside / "frames/0.png"):
        picture.save(path)
    (outside / "secret.mp4").write_bytes(b"secret")
    with tarfile.open(outside / "secret.tar", "w") as tar:
        tar.add(outside / "secret.png", "a.0.png")
    (media / "link.png").symlink_to(outside / "secret.png")
    (media / "link.mp4").symlink_to(outside / "secret.mp4")
    (media / "linked").symlink_to(outside, target_is_directory=True)
    (media / "deep/relative").symlink_to("../../outside", target_is_directory=True)
    (media / "twice.png").symlink_to(media / "link.png")
    (media / "link.tar").symlink_to(outside / "secret.tar")
    (media / "clip").mkdir()
    picture.save(media / "clip/0.png")
    (media / "clip/1.png").symlink_to(outside / "secret.png")
    (media / "told").mkdir()
    picture.save(media / "told/0.png")
    (media / "named.mp4").mkdir()
    (media / "named.mp4/0.png").symlink_to(outside / "secret.png")
    (outside / "manifest.json").write_text('{"indices": [0], "num_frames": 1, "fps": 1}')
    (media / "told/manifest.json").symlink_to(outside / "manifest.json")
    with tarfile.open(media / "indexed.tar", "w") as tar:
        tar.add(media / "good.png", "a.0.png")
    (outside / "secret.index").write_text("{}")
    (media / f"indexed{INDEX_SUFFIX}").symlink_to(outside / "secret.index")
    return tmp_path


PATHS = [
    *("../outside/secret.png", "deep/../../outside/secret.png", "deep/er/../../../outside/secret.png", "./../x.png"),
    *("{root}/outside/secret.png", "/etc/passwd", "//etc/passwd", "{root}/media/../outside/secret.png"),
    *(
        "link.png",
        "twice.png",
        "linked/secret.png",
        "deep/relative/secret.png",
        "linked/frames",
        "linked",
        "clip",
        "told",
    ),
    *("good.png\0", "a\0/../../outside/secret.png", "\0"),
    *("C:\\secret.png", "c:/secret.png", "\\\\server\\share\\secret.png"),
    *("http://127.0.0.1:9/secret.png", "https://x/secret.png", "file://{root}/outside/secret.png", "s3://b/secret.png"),
    *("data:image/png;base64,AAAA", "simplecache::file://{root}/outside/secret.png"),
    *(
        "../outside/secret.mp4",
        "named.mp4",
        "link.mp4",
        "../outside/secret.tar#a",
        "link.tar#a",
        "linked/secret.tar#a",
        "indexed.tar#a",
    ),
    *("", " ", ".."),
]


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("key", ["image", "images", "video", "videos", "frames"])
def test_no_row_leads_outside(place: Path, form: str, key: str) -> None:
    reader = MediaReader(num_frames=1, image_spec=ImageSpec(8))
    outside = os.path.realpath(place / "outside")
    refused = 0
    for path in PATHS:
        path = path.format(root=place)
        row = {"id": "0", key: path if key in ("image", "video") else [path], "conversations": CHAT}
        file = place / f"rows.{form}"
        file.write_text(json.dumps(row) if form == "jsonl" else json.dumps([row]))
        with watched() as seen:
            try:
                records = list(load_records(file, place / "media"))
                check_media(records)
                for medium in records[0].media:
                    reader.read(medium, np.random.default_rng(0))
            except AnnotationError as error:
                refused += "row 1" in str(error)
            except MediaError:
                assert not path.strip(), f"{path!r} was read"
        leaks = [name for name in seen if name.startswith((outside, "/etc/passwd")) or "/" not in name]
        assert not leaks, f"{path!r} as {key} opened {leaks}"
    assert refused >= len([p for p in PATHS if p.strip()])


def test_the_watch_sees_what_is_opened(place: Path) -> None:
    with watched() as seen:
        reader = MediaReader(num_frames=1, image_spec=ImageSpec(8))
        (place / "rows.json").write_text(json.dumps([{"id": "0", "image": "good.png", "conversations": CHAT}]))
        for record in load_records(place / "rows.json", place / "media"):
            reader.read(record.media[0], np.random.default_rng(0))
        (place / "media/link.png").read_bytes()
    assert str((place / "media/good.png").resolve()) in seen and str((place / "outside/secret.png").resolve()) in seen


@pytest.mark.parametrize("name", ["../outside/a", "/abs/a", "..\\a", "x/../../outside/a", "a\0b"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_members_of_a_shard_are_never_unpacked(place: Path, name: str, kind: bytes) -> None:
    data = (place / "media/good.png").read_bytes()
    tar_path = place / "media/shard.tar"
    with tarfile.open(tar_path, "w") as tar:
        info = tarfile.TarInfo(f"{name}.0.png")
        info.type, info.linkname = kind, str(place / "outside/secret.png")
        info.size = len(data) if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(data))
    before = sorted(place.rglob("*"))
    with watched() as seen:
        for key in (name, name.replace("\0", ""), name.partition("\0")[0]):
            try:
                with open_video(f"{tar_path}#{key}") as clip:
                    clip.get([0])
            except MediaError:
                continue
    assert {name for name in seen if name.startswith(str(place))} <= {str(tar_path), index_path(str(tar_path))}
    assert sorted(place.rglob("*")) == before
