"""The model hub: who asks for files and where they are kept, and one clear line for whatever goes wrong there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from prismatic.models.errors import first_line

_TOKEN_VARIABLE = "HF_TOKEN"
_CACHE_DIR: ContextVar[str | None] = ContextVar("cache_dir", default=None)


class NotHereError(ValueError):
    """A configuration or tokenizer could not be had; the text says why and what to do."""


@contextmanager
def hub_access(token: str | None, cache_dir: str | Path | None) -> Iterator[None]:
    """Inside, downloads of libraries that take no token (timm) use this one, and `cache_dir()` is this folder.

    The token goes into the environment variable that the hub library reads, and leaves it with the block.
    """
    before = os.environ.get(_TOKEN_VARIABLE)
    if token is not None:
        os.environ[_TOKEN_VARIABLE] = token
    mark = _CACHE_DIR.set(str(cache_dir) if cache_dir is not None else None)
    try:
        yield
    finally:
        _CACHE_DIR.reset(mark)
        if token is not None:
            os.environ.pop(_TOKEN_VARIABLE, None)
            if before is not None:
                os.environ[_TOKEN_VARIABLE] = before


def cache_dir() -> str | None:
    """Where hub files are kept inside `hub_access`; None for the hub library's own place."""
    return _CACHE_DIR.get()


def explain(error: BaseException, source: str) -> str:
    """What went wrong while `source` (a repository, or a file of one) was fetched, and what to do about it.

    Libraries wrap the hub's errors, so the chain of causes is looked through. An error that is none of the hub's
    comes back as its first line.
    """
    from huggingface_hub import constants, errors

    chain = _chain(error)
    gated = _find(chain, errors.GatedRepoError)
    if gated is not None:
        return (
            f"'{source}' is gated: accept its terms on its page at {constants.ENDPOINT}, then pass a token that may "
            "read it with --hf_token, which takes a file (default .hf_token) or the name of an environment variable"
            + ("" if _status(gated) == 401 else "; the token in use has no access to it yet")
        )
    if _find(chain, errors.RepositoryNotFoundError) is not None:
        return (
            f"the hub at {constants.ENDPOINT} has no repository '{source}', or it is a private one: check the "
            "spelling, or pass --hf_token with a token that may read it"
        )
    missing = _find(chain, errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError)
    if missing is not None:
        return f"'{source}' is not on the hub at {constants.ENDPOINT}: {first_line(missing)}"
    if constants.is_offline_mode() and _find(
        chain, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError
    ):
        return (
            f"'{source}' is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset it once to download, or "
            "point HF_HOME at a cache that has it"
        )
    answered = next((e for e in chain if isinstance(e, errors.HfHubHTTPError) and _status(e)), None)
    if answered is not None and _status(answered) in (401, 403):
        return (
            f"the hub at {constants.ENDPOINT} refused '{source}' with status {_status(answered)}: the token in use is "
            "not valid, or may not read it; check what --hf_token names"
        )
    if answered is not None:
        return f"the hub at {constants.ENDPOINT} refused '{source}' with status {_status(answered)}; try again later"
    if _find(chain, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) is not None:
        return (
            f"the hub at {constants.ENDPOINT} is out of reach, and '{source}' is not in the cache: check the network "
            "(HF_ENDPOINT, HTTPS_PROXY)"
        )
    return first_line(error)


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _find(chain: list[BaseException], *kinds: type[BaseException]) -> BaseException | None:
    return next((error for error in chain if isinstance(error, kinds)), None)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)
