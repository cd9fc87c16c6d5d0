"""How the captions of several videos become one question and one answer. A form is an entry of FORMS (`--form`).

Forms that ask for a choice list their options one a line, as `evaluate.py --task choice` reads them, and answer with
the letter and the option's words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from prismatic.data.weave import Form, Shown
from prismatic.prompting import PLACEHOLDERS
from prismatic.registry import Registry

FORMS: Registry[Form] = Registry("form", flag="--form")

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_ORDINALS += ("eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ORDERS = 4  # options of an order question: the right order and up to three others
# What forms ask whose answer is not simply the captions of all videos.
_ABOUT_ONE = "Describe what is happening in the {}."
_INDEXED = re.compile(re.escape(_ABOUT_ONE).replace(r"\{\}", rf"(({'|'.join(_ORDINALS)}) video|video number \d+)"))
_TIMES, _FRAMES = "Give the time of each part.", "Give the frames of each part."
_ORDER, _ODD = "In which order do these first appear?", "Which video is least like the others?"
_ASKED = {"order-question": _ORDER, "odd-one-out": _ODD}
# Words that say nothing about what a video shows.
_COMMON = frozenset(
    "a an the of in on at to and or with for from by into over under near is are was were be being it its this that "
    "his her their he she they as while then up down out off".split()
)


@FORMS.register("joined")
def joined(clips: Sequence[Shown], prompt: str, _rng: np.random.Generator) -> tuple[str, str]:
    """The captions one after the other: "cap1. cap2. cap3."."""
    return prompt, ". ".join(_bare(clip.caption) for clip in clips) + "."


@FORMS.register("ordered")
def ordered(clips: Sequence[Shown], prompt: str, _rng: np.random.Generator) -> tuple[str, str]:
    """The captions as a sequence in time: "First, cap1. Then, cap2. Finally, cap3."."""
    openings = ["First", *["Then"] * (len(clips) - 2), "Finally"] if len(clips) > 1 else ["First"]
    return prompt, " ".join(f"{o}, {_lower(_bare(c.caption))}." for o, c in zip(openings, clips, strict=True))


@FORMS.register("indexed")
def indexed(clips: Sequence[Shown], _prompt: str, rng: np.random.Generator) -> tuple[str, str]:
    """Asks about one of the videos by its number; the answer is that video's caption."""
    k = int(rng.integers(len(clips)))
    return _ABOUT_ONE.format(_nth(k)), f"{_bare(clips[k].caption)}."


@FORMS.register("timestamped")
def timestamped(clips: Sequence[Shown], prompt: str, _rng: np.random.Generator) -> tuple[str, str]:
    """Each caption with its time in the woven video, "0:00 - 0:12: cap1."; by frames where a duration is unknown."""
    if all(clip.duration for clip in clips):
        ends = np.cumsum([clip.duration for clip in clips]).tolist()
        times = [f"{_clock(start)} - {_clock(end)}" for start, end in zip([0.0, *ends[:-1]], ends, strict=True)]
        ask = _TIMES
    else:
        last = np.cumsum([clip.num_frames for clip in clips]).tolist()
        spans = [(end - clip.num_frames + 1, end) for end, clip in zip(last, clips, strict=True)]
        times = [f"Frame {start}" if start == end else f"Frames {start} - {end}" for start, end in spans]
        ask = _FRAMES
    lines = [f"{time}: {_bare(clip.caption)}." for time, clip in zip(times, clips, strict=True)]
    return f"{prompt} {ask}", "\n".join(lines)


@FORMS.register("order-question")
def order_question(clips: Sequence[Shown], prompt: str, rng: np.random.Generator) -> tuple[str, str]:
    """Lists what the videos show, mixed up, and asks which of up to four orders is theirs; the key is its letter.

    Equal captions are one event, at the place where it first appears. Fewer than two events: as `joined`.
    """
    events = list(dict.fromkeys(_bare(clip.caption) for clip in clips))
    if len(events) < 2:
        return joined(clips, prompt, rng)
    listed = rng.permutation(len(events)).tolist()  # listed[i]: the event with number i + 1
    right = tuple(listed.index(event) + 1 for event in range(len(events)))
    orders = {right: None}
    possible = 2 if len(events) == 2 else _ORDERS
    while len(orders) < possible:
        orders.setdefault(tuple((rng.permutation(len(events)) + 1).tolist()))
    options = [list(orders)[i] for i in rng.permutation(len(orders)).tolist()]
    lines = [_ORDER]
    lines += [f"{number}. {events[event]}." for number, event in enumerate(listed, start=1)]
    return _choice(lines, [", ".join(map(str, order)) for order in options], options.index(right))


@FORMS.register("odd-one-out")
def odd_one_out(clips: Sequence[Shown], prompt: str, rng: np.random.Generator) -> tuple[str, str]:
    """Asks which video is least like the others; the key is the one whose caption shares the fewest words with theirs.

    Likeness is the share of common words (Jaccard), its mean over the other videos. Without one odd video (fewer than
    three, more than 26, or no single lowest one): as `indexed`.
    """
    words = [frozenset(_bare(clip.caption).lower().replace(",", " ").split()) - _COMMON for clip in clips]
    if not 3 <= len(clips) <= len(_LETTERS):
        return indexed(clips, prompt, rng)
    means = [sum(_shared(a, b) for b in words) - _shared(a, a) for a in words]
    odd = int(np.argmin(means))
    if sum(mean <= means[odd] + 1e-9 for mean in means) > 1:
        return indexed(clips, prompt, rng)
    return _choice([_ODD], [f"the {_nth(k)}" for k in range(len(clips))], odd)


def is_as_asked(form: str, question: str) -> bool:
    """False when the captions did not let the form (an id) ask what it is named after, and it asked as another does."""
    return form not in _ASKED or _ASKED[form] in question.splitlines()


def answered_by_all_captions(question: str) -> bool:
    """Whether the answer to a woven row's question is the captions of all its videos and nothing else."""
    asked = question.splitlines()
    ends = (_TIMES, _FRAMES)
    return not any(line in (_ORDER, _ODD) or line.endswith(ends) or _INDEXED.fullmatch(line) for line in asked)


def _choice(lines: list[str], options: list[str], right: int) -> tuple[str, str]:
    listed = [f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    return "\n".join([*lines, *listed]), f"{_LETTERS[right]}. {options[right]}."


def _shared(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def _nth(k: int) -> str:
    return f"{_ORDINALS[k]} video" if k < len(_ORDINALS) else f"video number {k + 1}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours = f"{whole // 3600}:{whole // 60 % 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02d}"


def _bare(caption: str) -> str:
    """One line, without the full stop that the form puts itself, and without what would stand for a video."""
    for mark in PLACEHOLDERS:
        caption = caption.replace(mark, " ")
    return " ".join(caption.split()).rstrip(".").rstrip()


def _lower(caption: str) -> str:
    """A capital at the start becomes small, unless the word is an abbreviation ("TV") or "I"."""
    first = caption.split(" ", 1)[0]
    return caption if first.isupper() and first != "A" else caption[:1].lower() + caption[1:]
