"""Every kind of file: the frames asked for are those of a full sequential decode, whatever was asked before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from prismatic.video.decode import Clip, MediaError, open_video
from prismatic.video.walk import Walk
from tests.video.files import KINDS, read_code, write_video

Video = Callable[[str], Path]


def decode_all(path: Path) -> np.ndarray:
    """The truth: every packet in order into one decoder; what comes out is what there is. uint8 [N, H, W, 3]."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        for packet in [*(p for p in container.demux(stream) if p.size), None]:
            try:
                frames += stream.codec_context.decode(packet)
            except av.InvalidDataError:
                assert "truncated" in path.name, f"{path} was not meant to be damaged"
    return np.stack([np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in frames])


def uniform(total: int, count: int) -> list[int]:
    return np.linspace(0, total - 1, count).astype(int).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_sequential_decode(kind: str, video: Video) -> None:
    truth = decode_all(video(kind))
    total = len(truth)
    rng = np.random.default_rng(5)
    with open_video(video(kind)) as clip:
        assert len(clip) == total
        assert (clip.height, clip.width) == truth.shape[1:3]
        asked = [uniform(total, 8), *(np.sort(rng.choice(total, min(k, total), replace=False)) for k in (1, 2, 5, 9))]
        # Any order, an index twice, neighbours one by one (a frame left out by one call may be the next call's).
        asked += [rng.integers(0, total, 6), *([i] for i in range(min(total, 14))), range(total)[::-1][:5]]
        for indices in asked:
            assert np.array_equal(clip.get(indices), truth[list(indices)]), f"{kind}: {list(indices)}"


@pytest.mark.parametrize("kind", ["h264-mp4", "h264-ts", "vp9-webm", "wmv2-wmv", "theora-ogv", "mpeg4-b-avi"])
def test_frames_show_their_own_numbers(kind: str, video: Video) -> None:
    # The comparison above would hold if both sides were wrong in the same way.
    with open_video(video(kind)) as clip:
        for index, frame in zip(range(0, 60, 7), clip.get(range(0, 60, 7)), strict=True):
            assert read_code(frame) == index


def test_edit_list_hides_the_first_frames(video: Video) -> None:
    with open_video(video("cut-mp4")) as clip:
        assert len(clip) == 70 - 17
        assert [read_code(f) for f in clip.get([0, 1, 30, len(clip) - 1])] == [17, 18, 47, 69]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(degrees: int, tmp_path: Path) -> None:
    turned = write_video(tmp_path / "turned.mp4", "libx264", 3, rotation=degrees)
    with open_video(turned) as clip:
        frame = clip.get([2])[0]
        assert frame.shape == (clip.height, clip.width, 3) == ((96, 128, 3) if degrees == 180 else (128, 96, 3))
        assert read_code(np.rot90(frame, -degrees // 90)) == 2


def test_timestamps(video: Video) -> None:
    with open_video(video("h264-ts")) as clip:
        assert clip.timestamps.dtype == np.float64
        assert np.allclose(clip.timestamps, np.arange(60) / 25)
        assert clip.fps == pytest.approx(25)
        assert clip.duration == pytest.approx(60 / 25)
    steps = np.random.default_rng(3).integers(10, 120, size=60) / 1000
    with open_video(video("vfr-mp4")) as clip:
        assert np.allclose(clip.timestamps, np.concatenate([[0], np.cumsum(steps)[:-1]]), atol=1e-3)
    with open_video(video("one-frame-mp4")) as clip:
        assert (len(clip), clip.timestamps.tolist()) == (1, [0.0])
        assert clip.fps == pytest.approx(25)


def count_decoded(path: Path, indices: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Frames that came out of the decoder while opening and asking, and the number of frames of the clip."""
    came = 0
    plain = Walk.next

    def counting(self: Walk, *told: object) -> object:
        nonlocal came
        frame = plain(self, *told)
        came += frame is not None
        return frame

    monkeypatch.setattr(Walk, "next", counting)
    with open_video(path) as clip:
        clip.get(indices(len(clip)))
        return came, len(clip)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("truncated-mp4", "refresh-mp4")])
@pytest.mark.parametrize("count", [2, 8])
def test_never_decodes_more_than_a_sequential_pass(
    kind: str, count: int, video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, total = count_decoded(video(kind), lambda n: uniform(n, count), monkeypatch)
    # One more: a clip whose frames are counted is opened by decoding its first frame, then stands behind it.
    assert came <= total + 1


@pytest.mark.parametrize("kind", ["h264-mp4", "h264-mkv", "h264-ts", "mpeg2-mpg", "vp9-webm", "wmv2-wmv", "hevc-mp4"])
def test_seeks_when_a_keyframe_lies_between(kind: str, video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    came, total = count_decoded(video(kind), lambda n: [0, n - 1], monkeypatch)
    assert came <= 20 < total, f"{came} frames decoded for two, with keyframes at most 12 frames apart"


@pytest.mark.parametrize("kind", KINDS)
def test_keyframes_are_pictures_that_need_no_other(kind: str, video: Video) -> None:
    with av.open(str(video(kind))) as container, open_video(video(kind)) as clip:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        types = []
        for packet in [*(p for p in container.demux(stream) if p.size), None]:
            with suppress(av.InvalidDataError):
                types += [frame.pict_type for frame in stream.codec_context.decode(packet)]
        assert clip.keyframes is not None and (np.diff(clip.keyframes) > 0).all()
        if kind != "refresh-mp4":  # whose marks lie: decoding finds that out
            assert all(types[number] in (PictureType.I, PictureType.NONE) for number in clip.keyframes)
        assert len(clip.keyframes) or not clip.index.ordered  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["h264-mp4", "hevc-mp4", "h264-ts", "vp9-webm", "mpeg2-mpg"])
def test_a_keyframe_costs_one_frame(kind: str, video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_video(video(kind)) as clip:
        keys = clip.keyframes
    assert keys is not None and len(keys) >= 4
    came, _ = count_decoded(video(kind), lambda _: keys[1:4].tolist(), monkeypatch)
    assert came == 1 + 3, "opening decodes one frame, and each keyframe is one"


def test_opening_decodes_one_frame(video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_decoded(video("long-gop-mp4"), lambda _: [], monkeypatch)[0] == 1


def test_threads_change_nothing(video: Video) -> None:
    for kind in ("h264-mp4", "hevc-mp4", "vp9-webm", "mpeg2-mpg"):
        with open_video(video(kind)) as one, open_video(video(kind), threads=3) as three:
            assert np.array_equal(one.get(uniform(60, 8)), three.get(uniform(60, 8)))


def test_damage_in_the_middle_costs_only_the_frames_it_hit(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", "libx264", 60, options={"g": "1", "bf": "0"})
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts == 30 * p.duration)
    content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    with open_video(damaged) as clip:
        assert len(clip) == 60
        assert [read_code(f) for f in clip.get([29, 31, 59])] == [29, 31, 59]
        with pytest.raises(MediaError, match=r"damaged\.mp4: decoder 'pyav': frame 30 of 60 \(at 1\.200 s\)"):
            clip.get([30])
        assert read_code(clip.get([32])[0]) == 32


def test_closing(video: Video) -> None:
    clip: Clip = open_video(video("h264-mp4"))
    clip.close()
    clip.close()
    with pytest.raises(MediaError, match="was closed"):
        clip.get([5])


def test_indices_outside_are_refused(video: Video) -> None:
    with open_video(video("h264-mp4")) as clip:
        assert clip.get([]).shape == (0, 96, 128, 3)
        for index in (-1, 60):
            with pytest.raises(IndexError, match="clip of 60 frames"):
                clip.get([0, index])
