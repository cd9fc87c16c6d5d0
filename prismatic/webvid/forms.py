"""How the captions of several videos become one question and one answer. A form is an entry of FORMS (`--form`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prismatic.registry import Registry

Form = Callable[[Sequence[str], str, np.random.Generator], tuple[str, str]]
"""(captions in the order of the videos, --prompt, randomness) -> (question without placeholders, answer)."""
FORMS: Registry[Form] = Registry("form", flag="--form")

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_ORDINALS += ("eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth")


@FORMS.register("joined")
def joined(captions: Sequence[str], prompt: str, _rng: np.random.Generator) -> tuple[str, str]:
    """The captions one after the other: "cap1. cap2. cap3."."""
    return prompt, ". ".join(_bare(caption) for caption in captions) + "."


@FORMS.register("ordered")
def ordered(captions: Sequence[str], prompt: str, _rng: np.random.Generator) -> tuple[str, str]:
    """The captions as a sequence in time: "First, cap1. Then, cap2. Finally, cap3."."""
    openings = ["First", *["Then"] * (len(captions) - 2), "Finally"] if len(captions) > 1 else ["First"]
    return prompt, " ".join(f"{o}, {_lower(_bare(c))}." for o, c in zip(openings, captions, strict=True))


@FORMS.register("indexed")
def indexed(captions: Sequence[str], _prompt: str, rng: np.random.Generator) -> tuple[str, str]:
    """Asks about one of the videos by its number; the answer is that video's caption."""
    k = int(rng.integers(len(captions)))
    name = f"{_ORDINALS[k]} video" if k < len(_ORDINALS) else f"video number {k + 1}"
    return f"Describe what is happening in the {name}.", f"{_bare(captions[k])}."


def _bare(caption: str) -> str:
    """Without the full stop that the form puts itself."""
    return caption.strip().rstrip(".").rstrip()


def _lower(caption: str) -> str:
    """A capital at the start becomes small, unless the word is an abbreviation ("TV") or "I"."""
    first = caption.split(" ", 1)[0]
    return caption if first.isupper() and first != "A" else caption[:1].lower() + caption[1:]
