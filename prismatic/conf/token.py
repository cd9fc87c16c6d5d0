"""The hub token behind `--hf_token`: from a file or an environment variable, never from the command line itself."""

from __future__ import annotations

import os
from pathlib import Path

from prismatic.conf.run import TOKEN_GIVEN, looks_like_token


def read_token(hf_token: str) -> str | None:
    """The hub token behind `--hf_token`: a file's content, or the value of an environment variable.

    The default file may be absent. Raises ValueError when another name is neither a file nor a variable.
    """
    path = Path(hf_token).expanduser()
    if path.is_file():
        return _checked_token(path.read_text(encoding="utf-8", errors="replace"), f"the file {hf_token}")
    if hf_token in os.environ:
        return _checked_token(os.environ[hf_token], f"the environment variable {hf_token}")
    if hf_token in ("", ".hf_token"):
        return None
    if looks_like_token(hf_token):
        raise ValueError(TOKEN_GIVEN)
    raise ValueError(f"--hf_token: '{hf_token}' is neither a file nor an environment variable")


def _checked_token(text: str, place: str) -> str | None:
    token = text.strip()
    # It goes into an HTTP header, and the libraries would quote a bad one in their error.
    if not token.isascii() or len(token.split()) > 1:
        raise ValueError(f"--hf_token: {place} must hold a hub token and nothing else")
    return token or None
