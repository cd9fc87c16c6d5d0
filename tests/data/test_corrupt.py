"""Broken files among many: named one by one, replaced alike in every run, and an end above the share; bombs too."""

from __future__ import annotations

import json
import resource
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from prismatic.data.annotations import load_records
from prismatic.data.dataset import ClipDataset, MediaReader, SampleError
from prismatic.data.loader import StepLoader
from prismatic.data.pack import collate
from prismatic.data.watch import ReadingWatch
from prismatic.prompting import TEMPLATES
from prismatic.train.errors import TrainingError
from prismatic.train.skips import SkipAccount
from prismatic.types import Batch, ImageSpec
from tests.tokenizer_kinds import make

ROWS, STEP = 1000, 20


def _video(path: Path, frames: int, rate: int = 10) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()  # a header, frames or none
        for value in range(frames):
            grey = np.full((32, 32, 3), 10 * value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


def _eight_hours(path: Path) -> None:
    """A clip of a second whose header says eight hours."""
    _video(path, 10)
    data = bytearray(path.read_bytes())
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.index(box) + 4  # version and flags, two times, then the time scale where there is one
        offset = at + (20 if box == b"tkhd" else 16)
        scale = 1000 if box == b"tkhd" else struct.unpack(">I", data[at + 12 : at + 16])[0]
        data[offset : offset + 4] = struct.pack(">I", min(8 * 3600 * scale, 2**32 - 1))
    path.write_bytes(data)


def _bomb(path: Path, width: int = 20_000, height: int = 20_000) -> None:
    """A PNG of 400 million pixels in some hundred bytes that would decode: one row, repeated."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * width + 1) * 64, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def _break(path: Path, kind: int) -> str:
    """Make a file of a kind in the place of a whole one, and say what a skip's reason holds; "" for a readable one."""
    whole = path.read_bytes()
    if kind == 0:
        path.write_bytes(whole[: len(whole) // 2])
        return "cannot be read as an image"
    if kind == 1:
        path.write_bytes(b"")
        return "the file is empty"
    if kind == 2:
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
        return "cannot be read as an image"
    if kind == 3:
        path.unlink()
        return "no such file"
    Image.new("CMYK", (8, 8)).convert("1").save(path)  # another colour mode is no fault
    return ""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """1,000 rows of which 20 are broken, 4 of them videos; (folder, reason by id)."""
    root = tmp_path_factory.mktemp("data")
    picture = root / "picture.png"
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(picture)
    _video(root / "clip.mp4", 4)
    rows, broken = [], {}
    for number in range(ROWS):
        video = number % 100 == 7
        name = f"{number}.{'mp4' if video else 'png'}"
        (root / name).write_bytes((root / "clip.mp4").read_bytes() if video else picture.read_bytes())
        if number in (7, 107):
            (root / name).write_bytes((root / name).read_bytes()[:700])
            broken[str(number)] = name
        elif number in (207, 307):
            _video(root / name, 0)
            broken[str(number)] = name
        elif number % 50 == 13:
            reason = _break(root / name, number // 50 % 5)
            if reason:
                broken[str(number)] = reason
        key = "video" if video else "image"
        turns = [{"from": "human", "value": f"<{key}>\nWhat?"}, {"from": "gpt", "value": f"It is {number}."}]
        rows.append({"id": str(number), key: name, "conversations": turns})
    (root / "rows.json").write_text(json.dumps(rows))
    assert len(broken) == 20
    return root, broken


def _loader(root: Path, file: str = "rows.json", *, on_error: str = "skip", num_workers: int = 0, **read) -> StepLoader:
    dataset = ClipDataset(
        [load_records(root / file, root)],
        read=MediaReader(**{"num_frames": 2, "image_spec": ImageSpec(resolution=8), **read}),
        template=TEMPLATES.get("pure"),
        tokenizer=make("llama2"),
        layout="after-bos",
        max_length=64,
        tokens_per_clip=lambda frames: frames,
        on_error=on_error,
        seed=5,
        watch=ReadingWatch(5.0),
    )
    return StepLoader(
        dataset,
        partial(collate, pad_token_id=0, packing=False),
        num_examples=dataset.num_examples,
        global_batch_size=STEP if file == "rows.json" else 2,
        per_device_batch_size=10 if file == "rows.json" else 1,
        seed=5,
        num_workers=num_workers,
    )


def _account(steps: Sequence[list[Batch]], path: Path, share: float) -> SkipAccount:
    account = SkipAccount(path, share)
    for step in steps:
        account.add(step, sum(len(b.ids) for b in step), sum(len(b.skipped) for b in step))
    account.check()
    return account


def test_two_per_cent_of_a_thousand(data: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, broken = data
    steps = list(_loader(root).iterate(0))
    assert len(steps) == ROWS // STEP and sum(len(b.ids) for s in steps for b in s) == ROWS
    account = _account(steps, tmp_path / "skipped.jsonl", 0.05)
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {row["id"] for row in listed} == broken.keys() and account.skipped == len(listed)
    for row in listed:
        assert broken[row["id"]] in row["reason"] and f"rows.json, row {int(row['id']) + 1}" in row["source"]
    # The same in another run, with reading processes, and from the middle on.
    for again in (list(_loader(root, num_workers=2).iterate(0)), steps[:25] + list(_loader(root).iterate(0, 25))):
        for ours, theirs in zip(steps, again, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one.ids == other.ids and one.skipped == other.skipped
                assert one.input_ids.equal(other.input_ids) and one.frames.equal(other.frames)
    with pytest.raises(TrainingError, match=r"of \d+ samples were skipped, more than --dataset.max_skipped_share 0.01"):
        _account(steps, tmp_path / "again.jsonl", 0.01)


def test_under_raise_the_first_one_is_named(data: tuple[Path, dict[str, str]]) -> None:
    with pytest.raises(SampleError, match=r"rows.json, row \d+: .*--dataset.on_error skip leaves such samples out"):
        list(_loader(data[0], on_error="raise").iterate(0))


@pytest.mark.parametrize(("name", "make_it"), [("bomb.png", _bomb), ("long.mp4", _eight_hours)])
def test_bombs_cost_neither_time_nor_memory(name: str, make_it: Callable[[Path], None], tmp_path: Path) -> None:
    make_it(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "fine.png")
    key = "video" if name.endswith("mp4") else "image"
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    rows = [{"id": "bad", key: name, "conversations": turns}]
    rows += [{"id": f"fine-{n}", "image": "fine.png", "conversations": turns} for n in range(3)]
    (tmp_path / "few.json").write_text(json.dumps(rows))
    loader = _loader(tmp_path, "few.json")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    steps = list(loader.iterate(0))
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024
    skipped = [skip for step in steps for batch in step for skip in batch.skipped]
    if key == "image":
        assert {skip.id for skip in skipped} == {"bad"}
        assert all("400000000 pixels" in skip.reason and "exceed" in skip.reason for skip in skipped)
    else:
        # Its frames are there; what the header says about their number is not believed.
        assert not skipped and "bad" in {i for step in steps for batch in step for i in batch.ids}
