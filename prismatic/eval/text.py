"""Text as the scorers see it."""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = frozenset(("a", "an", "the"))
# An apostrophe inside a word belongs to it ("isn't"), every other sign separates.
_NOT_A_WORD = re.compile(r"(?!\b'\b)[^\w\s]|_")


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation, in any script."""
    folded = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    return _NOT_A_WORD.sub(" ", folded).split()


def normalise(text: str) -> str:
    """The form in which two short answers are compared: lower-cased words without punctuation and articles."""
    found = words(text)
    return " ".join([word for word in found if word not in _ARTICLES] or found)
