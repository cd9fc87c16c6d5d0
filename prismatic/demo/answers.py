"""What the model does for a visitor, as work for the desk: see a clip, answer while it writes, weigh choices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from prismatic.ask import Conversation, Seen
from prismatic.conf.run import GenerateConfig
from prismatic.demo.desk import Job
from prismatic.report.pictures import data_uri, thumbnail
from prismatic.video.sampling import SAMPLERS

if TYPE_CHECKING:
    from transformers import StoppingCriteria, TextStreamer

FRAME_SIDE, FRAME_QUALITY = 224, 82  # of a frame on the page: pixels, JPEG
MOST_FRAMES = 256  # a visitor may ask for: decoded frames of a large video take 6 MB each
MOST_CHOICES = 64
_KINDS: dict[str, type] = {
    "num_frames": int,
    "sampler": str,
    "max_new_tokens": int,
    "do_sample": bool,
    "temperature": float,
}


def chosen_settings(defaults: GenerateConfig, asked: Mapping[str, Any]) -> GenerateConfig:
    """The settings with what a visitor has changed on the page. Raises ValueError for values that cannot work."""
    values: dict[str, Any] = {}
    for name, value in asked.items():
        kind = _KINDS.get(name)
        if kind is None:
            raise ValueError(f"there is no setting '{name}'; there are {', '.join(_KINDS)}")
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
        values[name] = kind(value)
    cfg = replace(defaults, **values)
    cfg.validate()
    SAMPLERS.get(cfg.sampler)
    most = max(MOST_FRAMES, defaults.num_frames or 1)
    if cfg.num_frames is not None and cfg.num_frames > most:
        raise ValueError(f"at most {most} frames can be taken here, got {cfg.num_frames}")
    return cfg


def see(conversation: Conversation, cfg: GenerateConfig) -> Callable[[Job], None]:
    """Tells `frames`: what the model sees of the conversation's clip, encoded for the questions to come."""

    def work(job: Job) -> None:
        conversation.cfg = cfg
        start = time.perf_counter()
        seen = conversation.see()
        job.tell(**_shown(seen), took=time.perf_counter() - start)

    return work


def answer(conversation: Conversation, cfg: GenerateConfig, question: str) -> Callable[[Job], None]:
    """Tells `text` as it is written, then `answer`. One that is stopped counts as it is: the conversation goes on."""

    def work(job: Job) -> None:
        conversation.cfg = cfg
        conversation.see()  # a clip that is too long for the context says so before anything is decoded
        start, first = time.perf_counter(), [0.0]

        def say(text: str) -> None:
            first[0] = first[0] or time.perf_counter() - start
            job.tell(text=text)

        tokenizer = conversation.vlm.llm_backbone.tokenizer
        whole = conversation.ask(question, streamer=_streamer(tokenizer, say), stopping_criteria=[_stopper(job)])
        took = time.perf_counter() - start
        job.tell(answer=whole, stopped=job.stop.is_set(), took=took, first=first[0] or took)

    return work


def weigh(
    conversation: Conversation, cfg: GenerateConfig, question: str, choices: Sequence[str], per_token: bool
) -> Callable[[Job], None]:
    """Tells `shares`: how likely each choice is as the answer. Nothing is added to the conversation."""
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise ValueError(f"2 to {MOST_CHOICES} choices are needed, one a line; got {len(choices)}")
    if len(set(choices)) < len(choices):
        raise ValueError("a choice stands there twice")

    def work(job: Job) -> None:
        conversation.cfg = cfg
        conversation.see()
        start = time.perf_counter()
        shares = conversation.score(question, choices, per_token)
        job.tell(shares=shares, took=time.perf_counter() - start)

    return work


def _shown(seen: Seen) -> dict[str, Any]:
    pictures = [thumbnail(frame.permute(1, 2, 0).numpy(), FRAME_SIDE) for frame in seen.frames]
    frames = [
        {"picture": data_uri(picture, FRAME_QUALITY), "second": round(float(second), 3)}
        for picture, second in zip(pictures, seen.seconds, strict=True)
    ]
    return {"frames": frames, "tokens": seen.num_tokens}


def _streamer(tokenizer: Any, say: Callable[[str], None]) -> TextStreamer:
    from transformers import TextStreamer

    class Telling(TextStreamer):
        """Says whole words as they come."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                say(text)

    return Telling(tokenizer, skip_special_tokens=True)


def _stopper(job: Job) -> StoppingCriteria:
    from transformers import StoppingCriteria

    class Stopped(StoppingCriteria):
        """True for all rows once the job is to stop."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), job.stop.is_set(), dtype=torch.bool, device=input_ids.device)

    return Stopped()
