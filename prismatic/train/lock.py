"""One process group at a time in a run folder.

The lock is the kernel's and ends with the process that holds it, however that ends; what the file says is only for
people. A POSIX record lock and not flock: processes that are forked (those that read the data) do not inherit it, and
network file systems know it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from pathlib import Path

log = logging.getLogger(__name__)

LOCK = ".lock"
_held: dict[Path, int] = {}  # Closing any descriptor of the file would let the lock go


def take(run_dir: Path) -> None:
    """Hold an existing run folder until this process ends, or until `release`.

    Raises ValueError when another process trains there.
    """
    path = (run_dir / LOCK).resolve()
    if path in _held and _same_file(path, _held[path]):
        return
    release(run_dir)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        text = os.pread(descriptor, 1000, 0)
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            log.warning(f"{run_dir} cannot be locked ({error.strerror}): do not start a second run there")
            return
        raise ValueError(
            f"another run trains in {run_dir}{_who(text)}. Wait for it or stop it, or give this one another --run_id"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n", 0)
    _held[path] = descriptor


def release(run_dir: Path) -> None:
    """Let the run folder go, if this process holds it."""
    descriptor = _held.pop((run_dir / LOCK).resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def _same_file(path: Path, descriptor: int) -> bool:
    """Whether the file that is locked still has this name: a folder may have been renamed, and made anew."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _who(text: bytes) -> str:
    try:
        owner = json.loads(text)
        return f": process {int(owner['pid'])} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return ""
