"""Multiple-choice questions: which options a question offers, and which of them a text means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prismatic.eval.text import normalise

# "(A) a cat", "A. a cat", "A) a cat", "A: a cat", at the start of a line.
_OPTION = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])[.):])\s+(\S.*?)\s*$", re.MULTILINE)
# An answer that starts with its letter: "B", "(B)", "B. a cat".
_LETTER = re.compile(r"^\s*\(?([A-Z])(?:[.):]|\)?\s*$)")


@dataclass(frozen=True)
class Option:
    """One option of a question: its letter and what it says."""

    letter: str
    text: str


def parse_options(question: str) -> list[Option]:
    """The options that a question lists, one a line, with letters in order from A. Raises ValueError otherwise."""
    options = [Option(match[1] or match[2], match[3]) for match in _OPTION.finditer(question)]
    letters = "".join(option.letter for option in options)
    if len(options) < 2 or letters != "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]:
        found = f"the letters {', '.join(letters)}" if letters else "none"
        raise ValueError(
            f"--task choice needs at least two options in the question, one a line, written `(A) ...` or `A. ...` "
            f"from A on; found {found}"
        )
    return options


def meant_option(text: str, options: list[Option]) -> int | None:
    """Index of the option that a text means, by its letter or by its words; None when it means none of them."""
    match = _LETTER.match(text)
    if match:
        return next((i for i, option in enumerate(options) if option.letter == match[1]), None)
    said = normalise(text)
    return next((i for i, option in enumerate(options) if normalise(option.text) == said), None)
