"""Records to examples: every kind of medium, broken samples under both policies, and the check before training."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.data.annotations import load_records
from prismatic.data.dataset import MAX_REPLACEMENTS, ClipDataset, MediaReader, Position, SampleError
from prismatic.data.pack import collate
from prismatic.prompting import TEMPLATES
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, ImageSpec, Record
from tests.tokenizer_kinds import make

SIDE, PATCHES = 16, 3


def _grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((24, 32, 3), value, np.uint8))


def _video(path: Path, values: Sequence[int]) -> None:
    """A clip whose frame i is all of one grey, values[i]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        stream.options = {"qscale": "1"}
        for value in values:
            container.mux(stream.encode(av.VideoFrame.from_image(_grey(value))))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("media")
    for value in (10, 20, 30):
        _grey(value).save(root / f"{value}.png")
    _video(root / "clip.mp4", range(40, 240, 20))
    _video(root / "short.mkv", (50, 100, 150))
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("this is no video")
    (root / "cut.mp4").write_bytes((root / "clip.mp4").read_bytes()[:600])
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    return root


def _row(name: str, question: str = "<image>\nWhat?", **media: Any) -> dict[str, Any]:
    return {
        "id": name,
        **media,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "A."}],
    }


def _records(root: Path, rows: Sequence[dict[str, Any]]) -> Sequence[Record]:
    path = root / "rows.json"
    path.write_text(json.dumps(rows))
    return load_records(path, root)


def _dataset(
    root: Path, rows: Sequence[dict[str, Any]], reader: dict[str, Any] | None = None, **options: Any
) -> ClipDataset:
    tokenizer = make("llama2")
    spec = ImageSpec(resolution=SIDE)
    settings: dict[str, Any] = {
        "template": TEMPLATES.get("pure"),
        "tokenizer": tokenizer,
        "layout": "after-bos",
        "max_length": 512,
        "tokens_per_clip": lambda frames: frames * PATCHES,
        "context_length": 1024,
        **options,
    }
    read = MediaReader(**{"num_frames": 4, "image_spec": spec, "resize_strategy": "resize-naive", **(reader or {})})
    return ClipDataset([_records(root, rows)], read=read, **settings)


def _greys(frames: torch.Tensor) -> list[int]:
    """Grey of each frame, to the nearest ten: encoding changes it a little."""
    return [round(float(frame.float().mean()) / 10) * 10 for frame in frames]


def test_one_batch_of_images_videos_frames_woven_and_text(root: Path) -> None:
    rows = [
        _row("image", image="10.png"),
        _row("video", image="clip.mp4"),
        _row("frames", frames=["10.png", "30.png", "20.png"]),
        _row("woven", "Q", videos=["clip.mp4", "short.mkv"], num_frames_per_video=2),
        _row("text", "Q"),
    ]
    dataset = _dataset(root, rows)
    examples = [dataset[Position(0, index)] for index in range(5)]
    assert [e.frames_per_medium for e in examples] == [(1,), (4,), (3,), (2, 2), ()]
    assert [_greys(e.frames) for e in examples] == [[10], [40, 100, 160, 220], [10, 30, 20], [40, 220, 50, 150], []]
    for index, example in enumerate(examples):
        assert example.frames.dtype == torch.uint8 and example.frames.shape[1:] == (3, SIDE, SIDE)
        assert int((example.input_ids == VISUAL_SLOT).sum()) == PATCHES * len(example.frames)
        assert abs(len(example) - int(dataset.lengths(np.array([index]))[0])) <= 40
    assert collate(examples, pad_token_id=0, packing=True).frames_per_medium != ()


def test_short_clips_follow_the_policy(root: Path) -> None:
    rows = [_row("short", video="short.mkv")]
    assert _greys(_dataset(root, rows)[Position(0, 0)].frames) == [50, 50, 100, 150]
    fewer = _dataset(root, rows, {"short_clips": "fewer"})[Position(0, 0)]
    assert fewer.frames_per_medium == (3,) and int((fewer.input_ids == VISUAL_SLOT).sum()) == 3 * PATCHES
    with pytest.raises(
        SampleError, match=r"rows\.json, row 1: .*short\.mkv: the clip has 3 frames.*--dataset\.short_clips"
    ):
        _dataset(root, rows, {"short_clips": "error"})[Position(0, 0)]


def test_random_frames_depend_on_seed_epoch_and_index_alone(root: Path) -> None:
    rows = [_row(str(i), video="clip.mp4") for i in range(6)]

    def drawn(epoch: int, **options: Any) -> list[list[int]]:
        dataset = _dataset(root, rows, {"sampler": "random"}, **options)
        return [_greys(dataset[Position(epoch, index)].frames) for index in reversed(range(6))][::-1]

    assert drawn(0) == drawn(0) and len({tuple(frames) for frames in drawn(0)}) > 1
    assert drawn(0) != drawn(1) and drawn(0) != drawn(0, seed=1)
    assert drawn(0, train=False) == drawn(1, train=False)


def test_augmentation_is_applied_and_seeded(root: Path) -> None:
    rows = [_row("a", video="clip.mp4")]
    plain = _dataset(root, rows)[Position(0, 0)].frames
    jitter = [_dataset(root, rows, {"augmentations": ("color-jitter",)})[Position(0, 0)].frames for _ in range(2)]
    assert torch.equal(*jitter) and not torch.equal(plain, jitter[0])


def test_files_take_turns_over_epochs(root: Path) -> None:
    dataset = _dataset(root, [_row("a", image="10.png")])
    dataset.records_by_epoch = [dataset.records_by_epoch[0], _records(root, [_row("b", "Q"), _row("c", "Q")])]
    assert [dataset.num_examples(epoch) for epoch in range(4)] == [1, 2, 1, 2]
    assert [dataset[Position(epoch, 0)].id for epoch in range(4)] == ["a", "b", "a", "b"]


def test_filler_has_no_labels_and_no_frames(root: Path) -> None:
    filler = _dataset(root, [_row("a", video="gone.mp4")])[Position(0, 0, counted=False)]
    assert (filler.labels == IGNORE_INDEX).all() and filler.frames.shape == (0, 3, SIDE, SIDE) and len(filler) == 2


BROKEN = [
    ({"video": "gone.mp4"}, r"gone\.mp4.*no such file"),
    ({"video": "empty.mp4"}, r"empty\.mp4.*empty"),
    ({"video": "cut.mp4"}, r"cut\.mp4"),
    ({"video": "text.mp4"}, r"text\.mp4"),
    ({"image": "bad.jpg"}, r"bad\.jpg.*cannot be read as an image"),
    ({"image": "gone.jpg"}, r"gone\.jpg.*no such file"),
    ({"frames": ["10.png", "gone.png"]}, r"gone\.png.*no such file"),
]


@pytest.mark.parametrize(("media", "said"), BROKEN)
def test_broken_medium_stops_the_run_with_file_and_row(root: Path, media: dict[str, Any], said: str) -> None:
    dataset = _dataset(root, [_row("good", image="10.png"), _row("bad", **media)])
    with pytest.raises(SampleError, match=rf"(?i)rows\.json, row 2: .*{said}.*--dataset\.on_error skip"):
        dataset[Position(0, 1)]


@pytest.mark.parametrize(("media", "said"), BROKEN)
def test_broken_medium_is_replaced_and_told(root: Path, media: dict[str, Any], said: str) -> None:
    rows = [_row("bad", **media), *(_row(f"good{i}", image="10.png") for i in range(5))]
    dataset = _dataset(root, rows, on_error="skip")
    example = dataset[Position(2, 0)]
    assert example.id.startswith("good") and example.id == dataset[Position(2, 0)].id
    (skip,) = {skip.id: skip for skip in example.skipped}.values()
    assert (skip.id, skip.epoch, skip.index) == ("bad", 2, 0) and skip.source.endswith("rows.json, row 1")
    assert len(set(dataset[Position(epoch, 0)].id for epoch in range(20))) > 1


def test_a_broken_row_does_not_replace_itself(root: Path) -> None:
    dataset = _dataset(root, [_row("bad", video="gone.mp4"), _row("good", image="10.png")], on_error="skip")
    assert [len(dataset[Position(epoch, 0)].skipped) for epoch in range(20)] == [1] * 20


def test_nothing_whole_is_an_error_under_skip_too(root: Path) -> None:
    dataset = _dataset(root, [_row("a", video="gone.mp4"), _row("b", video="text.mp4")], on_error="skip")
    with pytest.raises(SampleError, match=rf"row 1: .*; {MAX_REPLACEMENTS} others in its place are broken too"):
        dataset[Position(0, 0)]
    with pytest.raises(SampleError, match="1 of 1 rows looked at are broken"):
        _dataset(root, [_row("a", video="gone.mp4")], on_error="skip").check()


def test_context_overrun_tells_the_numbers_and_the_flags(root: Path) -> None:
    rows = [_row("small", image="10.png"), _row("big", "Q", videos=["clip.mp4"] * 8, num_frames_per_video=16)]
    dataset = _dataset(root, rows, context_length=200)
    for look in (dataset.check, lambda: dataset[Position(0, 1)]):
        with pytest.raises(
            SampleError, match=r"row 2: 384 visual tokens \(8 clips, --model\.num_frames 4\) \+ \d+ text"
        ) as e:
            look()
        for flag in ("--model.num_frames", "--model.frame_aggregator mean", "--model.rope_scaling_factor", "of 200"):
            assert flag in str(e.value)
    assert dataset[Position(0, 0)].id == "small"
    assert _dataset(root, rows, context_length=None).check() is None


def test_check_finds_no_labels_missing_media_and_counts_the_rest(root: Path) -> None:
    long_question = "why " * 400
    with pytest.raises(SampleError, match=r"row 1: no label token is left.*--model\.llm_max_length"):
        _dataset(root, [_row("a", long_question)], max_length=64).check()
    rows = [_row(str(i), image=f"gone{i}.png") for i in range(9)] + [_row("ok", image="10.png")]
    with pytest.raises(SampleError, match=r"9 of 10 rows looked at are broken") as caught:
        _dataset(root, rows).check()
    assert "row 1: " in str(caught.value) and "gone0.png: no such file" in str(caught.value)


def test_check_warns_under_skip_and_about_cut_texts(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [_row("gone", image="gone.png"), _row("ok", image="10.png")]
    rows[1]["conversations"][1]["value"] = "long " * 200
    with caplog.at_level(logging.WARNING):
        _dataset(root, rows, on_error="skip", max_length=64).check()
    assert "1 of 2 rows looked at are broken and will be skipped" in caplog.text
    assert "1 of 2 rows looked at have a text longer than --model.llm_max_length 64" in caplog.text


def test_check_looks_at_the_longest_rows_of_many(root: Path) -> None:
    rows = [_row(str(i), "Q") for i in range(400)]
    rows[217] = _row("woven", "Q", videos=["clip.mp4"] * 30)
    with pytest.raises(SampleError, match="row 218: 360 visual tokens"):
        _dataset(root, rows, context_length=300).check(limit=16)


def test_caption_stage_takes_the_end_token_of_the_tokenizer(root: Path) -> None:
    dataset = _dataset(root, [_row("a", image="10.png")], template=TEMPLATES.get("caption"))
    example = dataset[Position(0, 0)]
    learned = [token for token in example.labels.tolist() if token != IGNORE_INDEX]
    assert make("llama2").decode(learned) == "A.</s>" and len(example) == 1 + PATCHES + len(learned)
