"""moving-shapes: the plan, the captions in both directions, the pixels and the files."""

import csv
import hashlib
import itertools
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

from prismatic.data import moving_shapes as ms
from prismatic.data import moving_shapes_draw as draw
from prismatic.data import moving_shapes_render as rendering
from prismatic.data.moving_shapes_render import RenderError, render


def make_clip(event: str = "stops", direction: str = "right", seed: int = 3, colour: str = "red") -> ms.ClipPlan:
    attributes = ms.Attributes("circle", colour, "large", direction, event)
    return ms.ClipPlan("0000000", "train", "000", "mp4", attributes, seed)


def centre(frame: np.ndarray, ground: np.ndarray) -> tuple[float, float]:
    """Middle (x, y) of what differs from the background, in shares of the side."""
    moved = np.abs(frame.astype(int) - ground.astype(int)).sum(-1) > 120
    ys, xs = np.nonzero(moved)
    return float(xs.mean()) / frame.shape[1], float(ys.mean()) / frame.shape[0]


def empty_ground(frame: np.ndarray) -> np.ndarray:
    """The background of a frame, from its leftmost column: no object ever covers it."""
    return np.broadcast_to(frame[:, :1], frame.shape)


# ---------------------------------------------------------------------------------------------------- captions


def test_every_combination_has_its_own_caption_and_is_read_back():
    every = ms.combinations()
    assert len({ms.caption(a) for a in every}) == len(every) == 4 * 6 * 2 * 4 * (3 + 5)
    for attributes in every:
        read = ms.parse_caption(ms.caption(attributes))
        assert ms.Attributes(**read) == attributes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("no idea", {}),
        ("A LARGE blue Star", {"size": "large", "colour": "blue", "shape": "star"}),
        ("a circle, red and small, stops", {"shape": "circle", "colour": "red", "size": "small", "event": "stops"}),
        ("It turns green.", {"event": "turns green"}),
        ("A circle turns", {"shape": "circle"}),
        ("A circle turns back then turns red", {"shape": "circle", "event": "turns back"}),
        ("A bluered circlesquare", {}),
        ("Well. A square moves up. A circle moves down.", {"shape": "square", "direction": "up"}),
        ("A red circle or a blue square", {"shape": "circle", "colour": "red"}),
    ],
)
def test_parse_reads_what_is_said_and_nothing_else(text: str, expected: dict[str, str]):
    assert ms.parse_caption(text) == dict.fromkeys(ms.ATTRIBUTES) | expected


# ---------------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("counts", [(1200, 200), (rendering.NUM_TRAIN, rendering.NUM_VAL)])
def test_train_and_val_share_no_combination_and_train_shows_every_pair(counts: tuple[int, int]):
    clips = ms.plan(7, *counts)
    train = {c.attributes for c in clips if c.split == "train"}
    val = [c.attributes for c in clips if c.split == "val"]
    assert len([c for c in clips if c.split == "train"]) >= 1200 and len(val) >= 200
    assert train.isdisjoint(val)
    values = {name: {getattr(a, name) for a in ms.combinations()} for name in ms.ATTRIBUTES}
    for one, other in itertools.combinations(ms.ATTRIBUTES, 2):
        shown = {(getattr(a, one), getattr(a, other)) for a in train}
        possible = {(getattr(a, one), getattr(a, other)) for a in ms.combinations()}
        assert shown == possible, (one, other)
    kinds = [a.event_kind for a in val]
    assert all(kinds.count(kind) == len(val) // 4 for kind in ms.EVENT_KINDS)
    for name in ("shape", "colour", "size", "direction"):
        assert {getattr(a, name) for a in val} == values[name]


def test_plan_follows_the_seed_and_mixes_containers():
    clips = ms.plan(7, 400, 100)
    assert clips == ms.plan(7, 400, 100)
    assert clips != ms.plan(8, 400, 100)
    assert len({c.path for c in clips}) == 500
    others = [c.extension for c in clips if c.extension != "mp4"]
    assert all(others.count(kind) == 20 for kind in ms.OTHER_CONTAINERS)


def test_plan_refuses_empty_splits():
    with pytest.raises(ValueError, match="at least one clip"):
        ms.plan(7, 0, 10)


# ---------------------------------------------------------------------------------------------------- pixels


def test_pixels_are_a_function_of_the_plan():
    clip = make_clip()
    assert np.array_equal(draw.draw_clip(clip), draw.draw_clip(clip))
    frames = draw.draw_clip(clip)
    assert frames.dtype == np.uint8 and frames.shape[1:] == (draw.SIDE, draw.SIDE, 3)
    assert draw.num_frames(clip) == len(frames)
    assert 2.0 <= len(frames) / draw.FPS <= 4.0


@pytest.mark.parametrize("event", ["stops", "splits", "turns back", "turns blue"])
def test_the_first_frame_tells_neither_direction_nor_event(event: str):
    still = draw.draw_clip(make_clip("stops", "right"))[0]
    for direction in ms.DIRECTIONS:
        assert np.array_equal(draw.draw_clip(make_clip(event, direction))[0], still)


@pytest.mark.parametrize(
    ("direction", "step"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_objects_go_where_the_caption_says(direction: str, step: tuple[int, int]):
    for seed, event in itertools.product(range(5), ("stops", "turns back", "splits", "turns green")):
        frames = draw.draw_clip(make_clip(event, direction, seed))
        ground = empty_ground(frames[0])
        x0, y0 = centre(frames[0], ground)
        x1, y1 = centre(frames[int(len(frames) * 0.4)], ground)
        forward = (x1 - x0) * step[0] + (y1 - y0) * step[1]
        sideways = abs((x1 - x0) * step[1]) + abs((y1 - y0) * step[0])
        assert forward > 0.07 and sideways < 0.02


def test_events_show():
    stops = draw.draw_clip(make_clip("stops"))
    assert np.array_equal(stops[-1], stops[int(len(stops) * 0.6)])
    back = draw.draw_clip(make_clip("turns back"))
    ground = empty_ground(back[0])
    ways = [centre(frame, ground)[0] for frame in back]
    assert max(ways) - ways[0] > 0.12 and max(ways) - ways[-1] > 0.12
    splits = draw.draw_clip(make_clip("splits"))
    column = np.abs(splits[-1].astype(int) - empty_ground(splits[-1]).astype(int)).sum((1, 2)) > 120
    assert np.count_nonzero(np.diff(column.astype(int)) == 1) == 2, "two pieces, one above the other"
    turns = draw.draw_clip(make_clip("turns blue"))
    x, y = (round(v * draw.SIDE) for v in centre(turns[-1], empty_ground(turns[-1])))
    assert np.abs(turns[-1][y, x].astype(int) - draw.PALETTE["blue"]).max() <= 2


def test_objects_stay_in_the_picture():
    for clip in ms.plan(1, 60, 1):
        frames = draw.draw_clip(clip, side=64).astype(int)
        for frame in (frames[0], frames[len(frames) // 2], frames[-1]):
            edge = np.concatenate([frame[0], frame[-1]])
            assert np.abs(edge - np.median(edge.reshape(2, -1, 3), 1).repeat(64, 0)).sum(-1).max() < 60


# ---------------------------------------------------------------------------------------------------- files


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "moving-shapes"
    render(root, seed=7, num_train=25, num_val=8, num_workers=1)
    return root


def test_layout(rendered: Path):
    clips = ms.plan(7, 25, 8)
    for split in ("train", "val"):
        rows = list(csv.DictReader((rendered / f"{split}.csv").open()))
        annotations = json.loads((rendered / f"{split}.json").read_text())
        wanted = [c for c in clips if c.split == split]
        assert list(rows[0]) == ["videoid", "contentUrl", "duration", "page_dir", "name"]
        assert [row["name"] for row in rows] == [ms.caption(c.attributes) for c in wanted]
        assert [row["videoid"] for row in rows] == [row["id"] for row in annotations]
        for row, annotation in zip(rows, annotations, strict=True):
            (video,) = annotation["videos"]
            assert Path(video).parent.as_posix() == f"videos/{row['page_dir']}" and (rendered / video).is_file()
            assert row["duration"] in {"PT00H00M02S", "PT00H00M03S", "PT00H00M04S"}
            human, gpt = annotation["conversations"]
            assert human["value"].startswith("<video>\n") and gpt["value"] == row["name"]
    assert not list(rendered.rglob("*.part"))


@pytest.mark.parametrize(
    ("extension", "codec"), [("mp4", "h264"), ("mov", "h264"), ("mkv", "h264"), ("webm", "vp9"), ("avi", "mpeg4")]
)
def test_files_are_real_video_and_look_like_the_drawing(tmp_path: Path, extension: str, codec: str):
    frames = draw.draw_clip(make_clip("turns back"))
    path = tmp_path / f"clip.{extension}"
    path.write_bytes(rendering.encode(frames, extension))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == codec and float(stream.average_rate) == draw.FPS
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == frames.shape
    # Chroma is stored at half resolution, so single pixels at edges differ; the picture as a whole must not.
    assert np.abs(decoded.astype(int) - frames.astype(int)).mean() < 3.0


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(rendered: Path, tmp_path: Path):
    summary = render(tmp_path / "again", seed=7, num_train=25, num_val=8, num_workers=2)
    assert (summary.num_rendered, summary.num_train, summary.num_val) == (33, 25, 8)
    assert digests(tmp_path / "again") == digests(rendered)


def test_a_finished_render_returns_at_once(rendered: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "encode", lambda *_: pytest.fail("nothing is left to encode"))
    assert render(rendered, seed=7, num_train=25, num_val=8, num_workers=1).num_rendered == 0


def test_a_stopped_or_damaged_render_is_completed(tmp_path: Path, rendered: Path, monkeypatch: pytest.MonkeyPatch):
    root, real, calls = tmp_path / "moving-shapes", rendering.encode, itertools.count()

    def stop_after_ten(frames: np.ndarray, extension: str) -> bytes:
        if next(calls) == 10:
            raise KeyboardInterrupt
        return real(frames, extension)

    monkeypatch.setattr(rendering, "encode", stop_after_ten)
    with pytest.raises(KeyboardInterrupt):
        render(root, seed=7, num_train=25, num_val=8, num_workers=1)
    monkeypatch.undo()
    assert not (root / "train.json").exists()
    assert render(root, seed=7, num_train=25, num_val=8, num_workers=1).num_rendered == 23
    victim = next(root.glob("videos/*/*.mp4"))
    victim.write_bytes(victim.read_bytes()[:100])
    (root / "val.json").unlink()
    assert render(root, seed=7, num_train=25, num_val=8, num_workers=1).num_rendered == 1
    assert digests(root) == digests(rendered)


def test_other_settings_replace_the_clips_and_leave_foreign_files(tmp_path: Path):
    root = tmp_path / "moving-shapes"
    render(root, seed=1, num_train=3, num_val=2, num_workers=1)
    mine = root / "videos" / "000" / "holiday.mp4"
    mine.write_bytes(b"mine")
    before = digests(root)
    assert render(root, seed=2, num_train=2, num_val=1, num_workers=1).num_rendered == 3
    after = digests(root)
    assert after.pop("videos/000/holiday.mp4") == before["videos/000/holiday.mp4"]
    assert len([name for name in after if name.startswith("videos/")]) == 3
    assert after["train.json"] != before["train.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_a_clear_error(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(RenderError, match="write permission"):
        render(tmp_path / "moving-shapes", seed=1, num_train=1, num_val=1, num_workers=1)


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path):
    (tmp_path / "moving-shapes").write_text("not a folder")
    with pytest.raises(RenderError, match=r"moving-shapes could not be written under .*moving-shapes"):
        render(tmp_path / "moving-shapes", seed=1, num_train=1, num_val=1, num_workers=1)


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = Path.write_bytes, itertools.count()

    def full_after_three(self: Path, data: bytes) -> int:
        if next(calls) < 3:
            return real(self, data)
        real(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full_after_three)
    with pytest.raises(RenderError, match=r"No space left on device.*make room"):
        render(tmp_path, seed=1, num_train=3, num_val=1, num_workers=1)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.part"))
    assert render(tmp_path, seed=1, num_train=3, num_val=1, num_workers=1).num_rendered == 2
