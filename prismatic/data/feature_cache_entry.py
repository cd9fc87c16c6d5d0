"""One file of the feature cache: the features of one clip behind a header, both under a checksum.

A file appears under its name whole or not at all (written beside, then renamed), so a process that is killed while it
writes leaves nothing that could be read. Whatever happens to it later (a flipped bit, a file cut short, one moved to
another's name) is found when it is read.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADER_BYTES = 128
KEY_CHARS = 40
MAX_BYTES = 1 << 34  # of one clip: more is damage

_MAGIC = b"PRSMFT01"
# magic, key, dtype, T, P, Dv, bytes of the payload and their CRC-32; then zeros, then the CRC-32 of all before it.
_FIELDS = struct.Struct(f"<8s{KEY_CHARS}s12s3IQI")
_CRC = struct.Struct("<I")


class DamagedEntryError(ValueError):
    """A file of the cache is not what was written. The text names the file and what is wrong with it."""


def entry_bytes(shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Size of the file that keeps features of `shape` [T, P, Dv]."""
    T, P, Dv = shape
    return HEADER_BYTES + T * P * Dv * dtype.itemsize


def write_entry(path: Path, partial: Path, key: str, features: torch.Tensor) -> int:
    """Write features [T, P, Dv] (a CPU tensor of one of DTYPES) and return the bytes of the file.

    partial: a name on the same file system that no other writer uses; nothing is left there. Raises OSError.
    """
    assert features.ndim == 3 and len(key) == KEY_CHARS
    name = next(name for name, dtype in DTYPES.items() if dtype == features.dtype)
    payload = memoryview(features.contiguous().view(torch.uint8).numpy().reshape(-1))
    fields = _FIELDS.pack(_MAGIC, key.encode(), name.encode(), *features.shape, len(payload), zlib.crc32(payload))
    head = fields.ljust(HEADER_BYTES - _CRC.size, b"\0")
    try:
        with partial.open("wb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(head + _CRC.pack(zlib.crc32(head))))
            _write_all(file.fileno(), payload)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return HEADER_BYTES + len(payload)


def read_entry(path: Path, key: str) -> torch.Tensor:
    """The features [T, P, Dv] kept under `key`, on the CPU.

    Raises FileNotFoundError, DamagedEntryError, or another OSError.
    """
    with path.open("rb", buffering=0) as file:
        head = file.read(HEADER_BYTES)
        T, P, Dv, dtype, size, checksum = _parse(path, key, head)
        features = torch.empty((T, P, Dv), dtype=dtype)
        payload = memoryview(features.view(torch.uint8).numpy().reshape(-1))
        done = 0
        while done < size:
            count = file.readinto(payload[done:])
            if not count:
                raise DamagedEntryError(f"{path} is cut short: {done} of {size} bytes")
            done += count
        if file.read(1):
            raise DamagedEntryError(f"{path} is longer than the {size} bytes it should hold")
    if zlib.crc32(payload) != checksum:
        raise DamagedEntryError(f"{path}: the checksum of its features does not fit")
    return features


def _parse(path: Path, key: str, head: bytes) -> tuple[int, int, int, torch.dtype, int, int]:
    if len(head) != HEADER_BYTES:
        raise DamagedEntryError(f"{path} is cut short: {len(head)} bytes")
    if _CRC.unpack(head[-_CRC.size :])[0] != zlib.crc32(head[: -_CRC.size]):
        raise DamagedEntryError(f"{path}: the checksum of its header does not fit")
    magic, its_key, name, T, P, Dv, size, checksum = _FIELDS.unpack_from(head)
    dtype = DTYPES.get(name.rstrip(b"\0").decode("ascii", "replace"))
    if magic != _MAGIC or its_key != key.encode() or dtype is None:
        raise DamagedEntryError(f"{path} is another entry than its name says")
    if size != T * P * Dv * dtype.itemsize or not 0 < size <= MAX_BYTES:
        raise DamagedEntryError(f"{path}: {size} bytes cannot be [{T}, {P}, {Dv}] {name!r}")
    return T, P, Dv, dtype, size, checksum


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
