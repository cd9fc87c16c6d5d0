"""Writing files so that a kill or a full disk at any moment leaves the old ones whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import CheckpointException

from prismatic import dist
from prismatic.train.errors import CheckpointError

CHECKSUM_BLOCK = 4 * 2**20  # Bytes
PARTIAL, TRASH = ".partial", ".trash"  # Endings of names that no reader looks at; leftovers are removed


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write and sync a JSON file (not atomic: the folder around it is renamed afterwards)."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    sync(path)


def checksum(path: Path) -> str:
    """CRC-32 of a file, as eight hexadecimal digits. The interpreter is free for other threads meanwhile."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        block = bytearray(CHECKSUM_BLOCK)
        while count := file.readinto(block):
            crc = zlib.crc32(memoryview(block)[:count], crc)
    return f"{crc:08x}"


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write and sync a safetensors file, the same bytes for equal tensors. The library's error becomes an OSError."""
    try:
        # One entry alone: the library writes several in any order.
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # The library makes files that only their owner can read, whatever the umask says.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    sync(path)


def replace_link(link: Path, target: str) -> None:
    """Point a relative symbolic link at `target` in one step; whatever was there is replaced."""
    temporary = link.with_name(f".{link.name}{PARTIAL}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def replace(folder: Path, target: Path) -> None:
    """Rename a folder; one that is there under the new name is removed first."""
    if target.exists():
        remove(target)
    os.replace(folder, target)


def remove(path: Path) -> None:
    """Remove a file or a folder; a folder under a name that no reader looks at, so that it never seems complete."""
    if path.is_dir() and not path.is_symlink():
        trash = path if path.name.endswith((PARTIAL, TRASH)) else path.with_name(f".{path.name}{TRASH}")
        if trash != path:
            shutil.rmtree(trash, ignore_errors=True)
            os.replace(path, trash)
        shutil.rmtree(trash)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed while writing left in `folder`."""
    for path in folder.glob(".*"):
        if path.name.endswith((PARTIAL, TRASH)):
            remove(path)


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError when fewer than `needed` bytes (and a little) are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed + 2**20:
        raise OSError("there is no room for it")


def show_bytes(count: float) -> str:
    """`1.5 GB`: a size for people, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@dataclass(frozen=True)
class Writing:
    """What is being written, for the text of an error: the path, its size in bytes, the newest complete checkpoint."""

    path: Path
    needed: int
    last_good: Path | None = None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns whatever goes wrong while writing into a CheckpointError that says what to do."""
        try:
            yield
        # CheckpointException is a BaseException that wraps the causes of all ranks.
        except (OSError, RuntimeError, CheckpointException) as error:
            raise CheckpointError(self._explain(error)) from error

    def on_rank_zero(self, action: Callable[[], None], group: ProcessGroup | None = None) -> None:
        """Runs `action` on rank 0 while the others wait; its CheckpointError is raised on every rank.

        group: of `dist.side_group`, in a thread beside the main one.
        """
        text = None
        if dist.rank_zero():
            try:
                with self.errors():
                    action()
            except CheckpointError as error:
                text = str(error)
        text = dist.broadcast_object(text, group)
        if text is not None:
            raise CheckpointError(text)

    def _explain(self, error: BaseException) -> str:
        text = f"the checkpoint {self.path} ({show_bytes(self.needed)}) could not be written: {_reason(error)}"
        with contextlib.suppress(OSError):
            text += f"; {show_bytes(shutil.disk_usage(_existing(self.path)).free)} are free on that disk"
        kept = f"The last good checkpoint is whole: {self.last_good}" if self.last_good else "There is no earlier one"
        return (
            f"{text}. {kept}. Make room or mend the permissions and start the same command again, or pass another "
            "--run_root_dir"
        )


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # torch's archive writer hides the system's error behind an "enforce fail" about positions in the file.
    return f"the disk did not take all bytes ({text})" if "inline_container" in text else text


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
