"""Texts of other libraries' errors, fit for one line of ours."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What a library says went wrong, without the advice on the lines below; the error's name when it says nothing.

    Of the first cause, when torch.distributed.checkpoint wrapped those of all processes.
    """
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return str(error).strip().partition("\n")[0] or type(error).__name__
