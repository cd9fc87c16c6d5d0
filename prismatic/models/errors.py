"""Texts of other libraries' errors, fit for one line of ours."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What a library says went wrong, without the advice on the lines below."""
    return str(error).strip().partition("\n")[0]
