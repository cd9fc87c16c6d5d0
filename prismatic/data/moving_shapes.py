"""moving-shapes: what a clip of the embedded dataset shows, and the sentence that says so.

This file owns the attributes, the captions in both directions (`caption`, `parse_caption`) and the plan: which clips
a seed asks for and which combinations only validation sees. It draws nothing; `moving_shapes_draw` turns a planned
clip into pixels and `moving_shapes_render` turns those into files.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
DIRECTIONS = ("left", "right", "up", "down")
EVENT_KINDS = ("turns colour", "stops", "splits", "turns back")
ATTRIBUTES = ("shape", "colour", "size", "direction", "event")
QUESTION = "Describe what is happening in the video."

# Share of clips per file kind; the rest is mp4. Together they exercise every demuxer a folder of web videos would.
OTHER_CONTAINERS = ("webm", "avi", "mkv", "mov")
OTHER_SHARE = 0.04
# Share of the combinations that only validation may show.
HELD_OUT_SHARE = 0.15
CLIPS_PER_PAGE = 200

Split = Literal["train", "val"]
_EVENT_TEXT = {"stops": "stops", "splits": "splits in two", "turns back": "turns back"}


@dataclass(frozen=True, order=True)
class Attributes:
    """All that a caption says of one clip. `event` is stops, splits, turns back, or "turns <another colour>"."""

    shape: str
    colour: str
    size: str
    direction: str
    event: str

    @property
    def target_colour(self) -> str | None:
        """The colour the object ends with where the event is a change of colour, else None."""
        word = self.event.removeprefix("turns ")
        return word if word in COLOURS else None

    @property
    def event_kind(self) -> str:
        """One of EVENT_KINDS."""
        return "turns colour" if self.target_colour else self.event


@dataclass(frozen=True)
class ClipPlan:
    """One clip to render. `seed` alone decides what the attributes leave open (place, speed, background)."""

    video_id: str
    split: Split
    page_dir: str
    extension: str
    attributes: Attributes
    seed: int

    @property
    def path(self) -> str:
        """File of the clip, relative to the dataset's root, with forward slashes."""
        return f"videos/{self.page_dir}/{self.video_id}.{self.extension}"


def caption(attributes: Attributes) -> str:
    """The sentence for a combination; no two combinations share one."""
    a = attributes
    event = _EVENT_TEXT.get(a.event, a.event)
    return f"A {a.size} {a.colour} {a.shape} moves {a.direction} and then {event}."


def parse_caption(text: str) -> dict[str, str | None]:
    """Read the attributes out of free text, by its words alone; what is not said is None.

    Letter case, punctuation and order of the adjectives don't matter. Only the first sentence that names anything
    counts, so a model cannot score by listing alternatives. "turns <colour>" is the event, never the colour.
    """
    for sentence in re.split(r"[.!?\n]+", text.lower()):
        found = _parse_sentence(sentence)
        if any(found.values()):
            return found
    return dict.fromkeys(ATTRIBUTES)


def _parse_sentence(sentence: str) -> dict[str, str | None]:
    words = re.findall(r"[a-z]+", sentence)
    rest, event = _take_event(words)

    def first(values: tuple[str, ...]) -> str | None:
        return next((word for word in rest if word in values), None)

    return {
        "shape": first(SHAPES),
        "colour": first(COLOURS),
        "size": first(SIZES),
        "direction": first(DIRECTIONS),
        "event": event,
    }


def _take_event(words: list[str]) -> tuple[list[str], str | None]:
    """Split off the first event and return the words before it; after the event nothing else is described."""
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        if word in ("stop", "stops"):
            return words[:place], "stops"
        if word in ("split", "splits"):
            return words[:place], "splits"
        if word in ("turn", "turns") and (following == "back" or following in COLOURS):
            return words[:place], f"turns {following}"
    return words, None


def combinations() -> list[Attributes]:
    """Every combination of attributes once, in a fixed order."""
    found = []
    for shape, colour, size, direction in itertools.product(SHAPES, COLOURS, SIZES, DIRECTIONS):
        for event in (*_EVENT_TEXT, *(f"turns {target}" for target in COLOURS if target != colour)):
            found.append(Attributes(shape, colour, size, direction, event))
    return found


def plan(seed: int, num_train: int, num_val: int) -> list[ClipPlan]:
    """The clips of a seed, train first. Train and val share no combination; each kind of event is equally frequent.

    The combinations of each kind of event are shuffled and dealt in turn, so that single values and pairs come out
    as even as the number of clips allows.
    """
    if num_train < 1 or num_val < 1:
        raise ValueError(f"moving-shapes needs at least one clip in each split, got {num_train} train, {num_val} val")
    rng = np.random.default_rng([seed, 0])
    pools: dict[Split, list[list[Attributes]]] = {"train": [], "val": []}
    for kind in EVENT_KINDS:
        members = [a for a in combinations() if a.event_kind == kind]
        members = [members[i] for i in rng.permutation(len(members))]
        held_out = round(len(members) * HELD_OUT_SHARE)
        pools["val"].append(members[:held_out])
        pools["train"].append(members[held_out:])
    clips: list[ClipPlan] = []
    for split, count in (("train", num_train), ("val", num_val)):
        clips += _deal(pools[split], split, count, first=len(clips), rng=rng)
    return clips


def _deal(
    pools: list[list[Attributes]], split: Split, count: int, first: int, rng: np.random.Generator
) -> list[ClipPlan]:
    """`count` clips, the kinds of event in turn, then shuffled; `first` is the number of the first clip."""
    drawn = [pools[i % len(pools)][(i // len(pools)) % len(pools[i % len(pools)])] for i in range(count)]
    drawn = [drawn[i] for i in rng.permutation(count)]
    kinds = [
        OTHER_CONTAINERS[i % len(OTHER_CONTAINERS)] for i in range(round(count * OTHER_SHARE * len(OTHER_CONTAINERS)))
    ]
    extensions = np.array((kinds + ["mp4"] * count)[:count])[rng.permutation(count)]
    clips = []
    for i, (attributes, extension) in enumerate(zip(drawn, extensions, strict=True)):
        number = first + i
        page_dir = f"{number // CLIPS_PER_PAGE:03d}"
        clip_seed = int(rng.integers(2**63))
        clips.append(ClipPlan(f"{number:07d}", split, page_dir, str(extension), attributes, clip_seed))
    return clips
