"""What the model does for a visitor."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prismatic.ask import Conversation
from prismatic.conf.run import GenerateConfig
from prismatic.demo import answers
from prismatic.demo.desk import Event, Job

CFG = GenerateConfig(num_frames=4, max_new_tokens=24)


@pytest.fixture
def conversation(tiny_vlm, tiny_clip: Path) -> Conversation:
    conversation = Conversation(tiny_vlm, CFG)
    conversation.open(str(tiny_clip))
    return conversation


def _events(work: Callable[[Job], None], stop: threading.Event | None = None) -> list[Event]:
    job = Job(work)
    job.stop = stop or job.stop
    job.run()
    return list(iter(job.next_event, None))


class StopsSoon(threading.Event):
    """Set when it has been looked at a few times."""

    looks = 0

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > 6


def test_frames_are_shown_as_the_model_sees_them(conversation: Conversation) -> None:
    (shown,) = _events(answers.see(conversation, CFG))
    seen = conversation.see()
    assert [frame["second"] for frame in shown["frames"]] == pytest.approx(seen.seconds.tolist(), abs=1e-3)
    assert shown["tokens"] == seen.num_tokens
    data = base64.b64decode(shown["frames"][-1]["picture"].removeprefix("data:image/jpeg;base64,"))
    picture = Image.open(io.BytesIO(data))
    assert picture.size == (seen.frames.shape[-1],) * 2


def test_the_answer_comes_piece_by_piece_and_is_that_of_generate(conversation: Conversation) -> None:
    *pieces, last = _events(answers.answer(conversation, CFG, "What is it?"))
    vlm = conversation.vlm
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", "What is it?")
    assert last["answer"] == vlm.generate(str(conversation.media), builder.get_prompt(), max_new_tokens=24)
    assert "".join(piece["text"] for piece in pieces).strip() == last["answer"]
    assert not last["stopped"] and 0 < last["first"] <= last["took"]


def test_a_further_question_encodes_nothing_again(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    _events(answers.see(conversation, CFG))
    monkeypatch.setattr(conversation.vlm, "encode", lambda *_: pytest.fail("encoded again"))
    for question in ("What is it?", "And then?"):
        _events(answers.answer(conversation, CFG, question))
    _events(answers.weigh(conversation, CFG, "Is it?", ["yes", "no"], False))
    assert len(conversation.builder.turns) == 4


def test_a_stopped_answer_counts_as_far_as_it_came(conversation: Conversation) -> None:
    long = replace(CFG, max_new_tokens=400, min_length=400)
    stop = StopsSoon()
    last = _events(answers.answer(conversation, long, "What is it?"), stop)[-1]
    assert last["stopped"] and stop.looks < 12
    assert conversation.builder.turns[-1].text == last["answer"]
    whole = Conversation(conversation.vlm, long)
    whole.open(str(conversation.media))
    assert whole.ask("What is it?").startswith(last["answer"].rstrip("\ufffd"))
    assert "answer" in _events(answers.answer(conversation, CFG, "And?"))[-1]


def test_shares_are_those_of_score_choices(conversation: Conversation) -> None:
    (told,) = _events(answers.weigh(conversation, CFG, "Is it?", ["yes", "no", "a circle"], True))
    prompt = conversation.builder.get_potential_prompt("Is it?")
    expected = conversation.vlm.score_choices(str(conversation.media), prompt, ["yes", "no", "a circle"], True)
    assert told["shares"] == pytest.approx(expected) and sum(told["shares"]) == pytest.approx(1.0)


@pytest.mark.parametrize("choices", [[], ["yes"], ["yes", "yes"], ["x"] * 100])
def test_choices_that_cannot_be_weighed(conversation: Conversation, choices: list[str]) -> None:
    with pytest.raises(ValueError, match="choice"):
        answers.weigh(conversation, CFG, "Is it?", choices, False)


def test_settings_of_the_page() -> None:
    asked = {"num_frames": 2, "sampler": "fps", "max_new_tokens": 9, "do_sample": True, "temperature": 1}
    cfg = answers.chosen_settings(CFG, asked)
    assert {name: getattr(cfg, name) for name in asked} == asked
    assert answers.chosen_settings(CFG, {}) == CFG


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_frames": 0}, "at least 1"),
        ({"num_frames": 257}, "at most 256"),
        ({"num_frames": 2.5}, "num_frames must be"),
        ({"num_frames": True}, "num_frames must be"),
        ({"num_frames": None}, "num_frames must be"),
        ({"sampler": "unifrom"}, "did you mean 'uniform'"),
        ({"max_new_tokens": -1}, "at least 1"),
        ({"do_sample": True, "temperature": 0}, "greater than 0"),
        ({"do_sample": 1}, "do_sample must be"),
        ({"system_prompt": "x"}, "no setting 'system_prompt'"),
    ],
)
def test_settings_that_cannot_work(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        answers.chosen_settings(CFG, asked)


def test_more_frames_than_the_limit_where_the_model_was_trained_so() -> None:
    assert answers.chosen_settings(replace(CFG, num_frames=300), {}).num_frames == 300
