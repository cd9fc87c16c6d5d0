"""Training on shards and URLs: the batches of plain frame folders, in the same order, from any step on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from prismatic.conf.data import DatasetConfig
from prismatic.conf.webvid import WeaveConfig
from prismatic.conf.webvid_media import ExtractConfig
from prismatic.data.annotations import check_media, load_records
from prismatic.data.dataset import ClipDataset, MediaReader
from prismatic.data.loader import StepLoader
from prismatic.data.media_paths import MediaPathError, MediaRoot
from prismatic.data.pack import collate
from prismatic.prompting import TEMPLATES
from prismatic.types import Batch, ImageSpec
from prismatic.webvid.extract import extract
from prismatic.webvid.weave import weave
from tests.tokenizer_kinds import make
from tests.webvid.heap import make_catalog, write_heap

COUNT = 12


@pytest.fixture(scope="module")
def woven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with frames of twelve videos as f/ and s/, and the same weave of both: f.json and s.json."""
    root = tmp_path_factory.mktemp("woven")
    catalog = make_catalog(root, write_heap(root / "v", COUNT))
    clusters = [{"video_id": f"{i:03d}", "caption": "", "cluster": str(i // 2)} for i in range(COUNT)]
    (root / "clusters.json").write_text(json.dumps(clusters))
    for name, form in (("f", "folder"), ("s", "shards")):
        extract(ExtractConfig(catalog=catalog, num_frames=4, format=form, clips_per_shard=5, output=root / name))
    flags = {"clusters": root / "clusters.json", "catalog": catalog, "total_frames": 4}
    weave(WeaveConfig(**flags, frames=root / "s", output=root / "s.json"))  # type: ignore[arg-type]
    # The same rows of folders: f/000 in the place of 000000.tar#000.
    (root / "f.json").write_text(re.sub(r"\d{6}\.tar#", "", (root / "s.json").read_text()))
    return root


def _steps(file: Path, media_root: str, start: int = 0, **options: Any) -> list[list[Batch]]:
    tokenizer = make("llama2")
    dataset = ClipDataset(
        [load_records(file, media_root)],
        read=MediaReader(num_frames=4, image_spec=ImageSpec(resolution=16), resize_strategy="resize-naive"),
        template=TEMPLATES.get("pure"),
        tokenizer=tokenizer,
        layout="after-bos",
        max_length=512,
        tokens_per_clip=lambda frames: frames,
    )
    dataset.check()
    loader = StepLoader(
        dataset,
        lambda examples: collate(examples, pad_token_id=0, packing=False),
        num_examples=dataset.num_examples,
        global_batch_size=2,
        per_device_batch_size=2,
        seed=3,
        **options,
    )
    return list(loader.iterate(0, start))


def _same(a: list[list[Batch]], b: list[list[Batch]]) -> bool:
    pairs = [(x, y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True)]
    return all(x.ids == y.ids and torch.equal(x.frames, y.frames) for x, y in pairs)


def test_shards_give_the_batches_of_folders(woven: Path) -> None:
    rows = json.loads((woven / "s.json").read_text())
    assert rows[0]["num_frames_per_video"] == 2 and "000000.tar#" in json.dumps(rows)
    folders = _steps(woven / "f.json", str(woven / "f"))
    assert len(folders) == 3 and folders[0][0].frames.shape == (8, 3, 16, 16)
    assert _same(_steps(woven / "s.json", str(woven / "s")), folders)
    assert _same(_steps(woven / "s.json", str(woven / "s"), num_workers=2), folders)
    assert _same(_steps(woven / "s.json", str(woven / "s"), 1), folders[1:])


def test_a_media_folder_at_a_url(woven: Path) -> None:
    folders = _steps(woven / "f.json", str(woven / "f"))
    for name in ("f", "s"):
        assert _same(_steps(woven / f"{name}.json", f"file://{woven}/{name}", num_workers=2), folders)


def test_what_is_missing_is_found_before_training(woven: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A."}]}
    paths = ["000000.tar#000", "000000.tar#nobody", "000099.tar#000"]
    (woven / "rows.json").write_text(json.dumps([{**row, "video": path} for path in paths]))
    for root in (str(woven / "s"), f"file://{woven}/s"):
        problems = check_media(load_records(woven / "rows.json", root))
        assert len(problems) == 2
        assert "row 2" in problems[0] and "no clip 'nobody'" in problems[0]
        assert "row 3" in problems[1] and "no such" in problems[1]


BAD = [
    *("../x.mp4", "/etc/passwd", "a/../../x.mp4", "https://elsewhere/x.mp4", "a\0.mp4", "C:\\x.mp4"),
    *("../x.tar#a", "/x.tar#a", "s3://bucket/x.tar#a", "link.tar#a", "linked/x.tar#a", "a/%2e%2e/%2e%2e/x.mp4"),
    *("simplecache::x.mp4", "file::x.tar#a", "x.mp4?y=../z"),
]


@pytest.mark.parametrize("path", BAD)
def test_paths_stay_in_the_media_folder(path: str, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "x.tar").write_bytes(b"outside")
    (tmp_path / "media/link.tar").symlink_to(tmp_path / "x.tar")
    (tmp_path / "media/linked").symlink_to(tmp_path)
    local_only = path.startswith(("link.tar", "linked/"))
    url_only = "%2e" in path or "::" in path or "?" in path
    if not url_only:
        with pytest.raises(MediaPathError):
            MediaRoot(tmp_path / "media").resolve(path)
    if not local_only:
        with pytest.raises(MediaPathError):
            MediaRoot("s3://bucket/media").resolve(path)


def test_good_paths_below_a_url() -> None:
    root = MediaRoot("simplecache::s3://bucket/media/")
    assert root.resolve("a/b.mp4") == "simplecache::s3://bucket/media/a/b.mp4"
    assert root.resolve("./a//b c.tar#x/../y") == "simplecache::s3://bucket/media/a/b c.tar#x/../y"


def test_urls_as_media_folder_of_a_dataset() -> None:
    def folder(text: str) -> object:
        components = (Path("a.json"), Path(text))
        return DatasetConfig(finetune_stage_components=components).components("finetune")[1]

    assert folder("s3://bucket/videos") == "s3://bucket/videos"
    assert folder("simplecache::https://host/v") == "simplecache::https://host/v"
    assert folder("file:///srv/v") == "file:///srv/v"
    assert folder("webvid/videos") == Path("data/webvid/videos")
    assert folder("/srv/v") == Path("/srv/v")
