"""Writing a sharded checkpoint with a checksum of each file, taken of the bytes on their way to the disk."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem

BUFFER = 2**20  # Bytes; below it torch's many small pieces are put together


class ChecksumWriter(FileSystemWriter):
    """A FileSystemWriter (the layout is torch's own) that knows the CRC-32 of what this process wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fs = _SummedFiles()

    @property
    def checksums(self) -> dict[str, str]:
        """{file: eight hexadecimal digits}, as `files.checksum` gives them."""
        return {name: f"{file.crc:08x}" for name, file in self.fs.written.items()}


class _SummedFile(io.FileIO):
    crc = 0

    def write(self, data: Any) -> int:
        written = super().write(data) or 0
        self.crc = zlib.crc32(memoryview(data).cast("B")[:written], self.crc)
        return written


class _SummedFiles(FileSystem):
    def __init__(self) -> None:
        self.written: dict[str, _SummedFile] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb"
        file = _SummedFile(path, "wb")
        self.written[Path(path).name] = file
        with io.BufferedWriter(file, BUFFER) as stream:
            yield stream

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)
