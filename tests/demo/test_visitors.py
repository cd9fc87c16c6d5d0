"""Visitors and their uploads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismatic.ask import Conversation
from prismatic.conf.run import GenerateConfig
from prismatic.demo.visitors import BusyError, GoneError, Visitors


@pytest.fixture
def visitors(tiny_vlm) -> Iterator[Visitors]:
    visitors = Visitors(lambda: Conversation(tiny_vlm, GenerateConfig()), most=2)
    yield visitors
    visitors.close()


def _files(visitors: Visitors) -> list[Path]:
    return [path for path in Path(visitors._uploads.name).rglob("*") if path.is_file()]


def test_an_upload_replaces_the_one_before_and_goes_with_its_visitor(visitors: Visitors) -> None:
    one, two = visitors.enter(), visitors.enter()
    one.receive(io.BytesIO(b"abc"), 3, "a.mp4")
    two.receive(io.BytesIO(b"de"), 2, "b.PNG")
    assert one.name == "a.mp4" and one.conversation.media.read_bytes() == b"abc"
    assert two.conversation.media.suffix == ".png"
    before = one.conversation.media
    one.receive(io.BytesIO(b"fgh"), 3, "a.mp4")
    assert not before.exists() and len(_files(visitors)) == 2
    visitors.leave(two)
    assert _files(visitors) == [one.conversation.media]
    visitors.close()
    assert not Path(visitors._uploads.name).exists()


def test_names_of_uploads_are_only_shown(visitors: Visitors) -> None:
    visitor = visitors.enter()
    for name in ("../../escape.mp4", "a.mp4/../../b", "x.m/p4", "a" * 5000 + ".mp4", "\0.mp4"):
        visitor.receive(io.BytesIO(b"abc"), 3, name)
        assert visitor.conversation.media.parent.parent == Path(visitors._uploads.name)


def test_an_upload_is_a_picture_by_its_name_or_else_a_video(visitors: Visitors, tiny_clip: Path) -> None:
    visitor = visitors.enter()
    for name in ("clip.3gp", "clip", "clip.MOV"):
        visitor.receive(tiny_clip.open("rb"), tiny_clip.stat().st_size, name)
        assert len(visitor.conversation.see().frames) > 1
    visitor.receive(io.BytesIO(b"abc"), 3, "b.JPG")
    assert visitor.conversation.media.suffix == ".jpg"


def test_an_upload_that_breaks_off_leaves_nothing(visitors: Visitors) -> None:
    visitor = visitors.enter()
    with pytest.raises(ValueError, match="broke off"):
        visitor.receive(io.BytesIO(b"abc"), 4, "a.mp4")
    assert visitor.conversation.media is None and not _files(visitors)


def test_a_chosen_file_is_never_deleted(visitors: Visitors, tiny_clip: Path) -> None:
    visitor = visitors.enter()
    visitor.look_at(tiny_clip, tiny_clip.name)
    visitor.receive(io.BytesIO(b"abc"), 3, "a.mp4")
    visitors.leave(visitor)
    assert tiny_clip.exists()


def test_one_more_visitor_ends_the_conversation_that_was_silent_longest(visitors: Visitors) -> None:
    one, two = visitors.enter(), visitors.enter()
    visitors.find(one.token)
    three = visitors.enter()
    with pytest.raises(GoneError):
        visitors.find(two.token)
    assert visitors.find(one.token) is one
    with one.alone(), three.alone(), pytest.raises(BusyError, match="2 visitors"):
        visitors.enter()


def test_one_request_at_a_time(visitors: Visitors) -> None:
    visitor = visitors.enter()
    with visitor.alone(), pytest.raises(BusyError), visitor.alone():
        pass
    with visitor.alone():
        pass
