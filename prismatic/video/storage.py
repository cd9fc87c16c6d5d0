"""Bytes of a file, local or at a URL that fsspec understands (`s3://`, `gs://`, `https://`, `simplecache::s3://`, ...).

Owns the difference between the two, and nothing about what the bytes mean. Caching is fsspec's: put `simplecache::` or
`filecache::` before a URL.
"""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prismatic.video.clip import DecoderMissingError, MediaError

DECODER = "storage"

# Two letters and more: one is a drive of another system.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(://|::)")


def is_url(path: object) -> bool:
    """Whether a path is to be read by fsspec. A `Path` never is: it has lost one of the slashes."""
    return isinstance(path, str) and _URL.match(path) is not None


@contextmanager
def open_bytes(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to read and seek in; of a URL only what is read is fetched.

    Raises OSError for a local file; for a URL MediaError, or DecoderMissingError when a package is missing.
    """
    if not is_url(path):
        with Path(path).open("rb") as file:
            yield file
        return
    with _told(path):
        system, inside = _system(str(path))
        file = system.open(inside, "rb")
    try:
        with _told(path):
            yield file
    finally:
        file.close()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A whole file. Raises as `open_bytes`."""
    with open_bytes(path) as file:
        return file.read()


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file. Raises as `open_bytes`."""
    if not is_url(path):
        return os.stat(path).st_size
    with _told(path):
        system, inside = _system(str(path))
        return int(system.size(inside) or 0)


def is_dir(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder; False for what is not there."""
    if not is_url(path):
        return os.path.isdir(path)
    with _told(path):
        system, inside = _system(str(path))
        return bool(system.isdir(inside))


def list_names(path: str | os.PathLike[str]) -> list[str]:
    """Names in a folder, in no order. Raises as `open_bytes`."""
    if not is_url(path):
        return os.listdir(path)
    with _told(path):
        system, inside = _system(str(path))
        return [name.rstrip("/").rpartition("/")[2] for name in system.ls(inside, detail=False)]


def join(folder: str | os.PathLike[str], name: str) -> str:
    """The path of a name in a folder; what is a URL stays one."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def as_local_file(data: bytes, name: str) -> Path:
    """A temporary file with `data`, for libraries that read local files alone; its name ends like `name`."""
    handle, path = tempfile.mkstemp(suffix=Path(name).suffix)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    return Path(path)


def delete_with(owner: object, path: Path) -> None:
    """Delete a temporary file when `owner` is gone, or at the end of the process."""
    weakref.finalize(owner, path.unlink, missing_ok=True)


def _system(url: str) -> tuple[Any, str]:
    """(file system, path in it). Asked for at each use: fsspec keeps them, and makes new ones after a fork."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


@contextmanager
def _told(path: object) -> Iterator[None]:
    """Errors of a remote file system in our words. Each kind has its own: all are errors of this one file."""
    try:
        yield
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(path, DECODER, "no such file") from error
    except ImportError as error:
        raise DecoderMissingError(f"{path}: {error}") from error
    except Exception as error:
        raise MediaError(path, DECODER, f"cannot be fetched ({type(error).__name__}: {error})") from error
