"""Conversations: what the model sees, several of them with one model, and choices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prismatic.ask import Conversation
from prismatic.conf.run import GenerateConfig
from prismatic.models.vlm import PrismaticVLM


def _conversation(vlm: PrismaticVLM, clip: Path | None, **settings: object) -> Conversation:
    conversation = Conversation(vlm, GenerateConfig(max_new_tokens=6, **settings))
    if clip is not None:
        conversation.open(str(clip))
    return conversation


def test_what_is_seen_is_what_goes_into_the_model(tiny_vlm: PrismaticVLM, tiny_clip: Path) -> None:
    seen = _conversation(tiny_vlm, tiny_clip, num_frames=4).see()
    assert torch.equal(seen.frames, tiny_vlm.clip_reader.read(str(tiny_clip))[0]) and seen.frames.dtype == torch.uint8
    np.testing.assert_allclose(seen.seconds, np.array([0, 9, 19, 29]) / 25)
    assert seen.num_tokens == tiny_vlm.tokens_per_clip(4)


def test_a_sampler_that_takes_fewer_frames(tiny_vlm: PrismaticVLM, tiny_clip: Path) -> None:
    seen = _conversation(tiny_vlm, tiny_clip, num_frames=9, sampler="fps-2").see()
    np.testing.assert_allclose(seen.seconds, [0.0, 0.48, 1.0])  # the frame on show at 0.5 s began at 0.48 s
    assert len(seen.frames) == 3 and seen.num_tokens == tiny_vlm.tokens_per_clip(3)


def test_an_image_is_one_frame_without_a_time(tiny_vlm: PrismaticVLM, tiny_picture: Path) -> None:
    seen = _conversation(tiny_vlm, tiny_picture, num_frames=4).see()
    assert len(seen.frames) == 1 and seen.seconds.tolist() == [0.0]


def test_conversations_with_one_model_keep_their_own_settings(tiny_vlm: PrismaticVLM, tiny_clip: Path) -> None:
    few, many = (
        _conversation(tiny_vlm, tiny_clip, num_frames=2),
        _conversation(tiny_vlm, tiny_clip, num_frames=5, sampler="random"),
    )
    assert [len(c.see().frames) for c in (few, many, few, many)] == [2, 5, 2, 5]
    first = few.ask("What is it?")
    many.ask("What is it?")
    assert _conversation(tiny_vlm, tiny_clip, num_frames=2).ask("What is it?") == first


def test_settings_may_change_between_two_questions(tiny_vlm: PrismaticVLM, tiny_clip: Path) -> None:
    conversation = _conversation(tiny_vlm, tiny_clip, num_frames=2)
    conversation.ask("What is it?")
    conversation.cfg = GenerateConfig(num_frames=3, max_new_tokens=6)
    assert len(conversation.see().frames) == 3
    conversation.ask("And now?")
    assert [turn.role for turn in conversation.builder.turns] == ["human", "gpt"] * 2


def test_frames_beyond_the_context_are_refused_before_they_are_decoded(
    tiny_vlm: PrismaticVLM, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_vlm, "encode_clips", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="context"):
        _conversation(tiny_vlm, tiny_clip, num_frames=1000).see()


def test_choices_leave_the_conversation_as_it_was(tiny_vlm: PrismaticVLM, tiny_clip: Path) -> None:
    conversation = _conversation(tiny_vlm, tiny_clip, num_frames=2)
    conversation.ask("What is it?")
    shares = conversation.score("Is it red?", ["yes", "no"])
    prompt = conversation.builder.get_potential_prompt("Is it red?")
    assert shares == pytest.approx(tiny_vlm.score_choices(str(tiny_clip), prompt, ["yes", "no"]))
    assert len(conversation.builder.turns) == 2


def test_without_media(tiny_vlm: PrismaticVLM) -> None:
    conversation = _conversation(tiny_vlm, None)
    for call in (conversation.see, lambda: conversation.ask("What?"), lambda: conversation.score("What?", ["a", "b"])):
        with pytest.raises(ValueError, match="no image or video yet"):
            call()
