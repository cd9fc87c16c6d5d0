"""Checkpoint files that would run code if they were unpickled without care. Each one would write `marker`."""

from __future__ import annotations

import builtins
import copy
import functools
import importlib
import io
import json
import operator
import os
import pickle
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class CallWithState:
    """Pickles to an object whose state is set by a call (the BUILD opcode)."""

    def __init__(self, setter: Callable[..., Any], state: Any) -> None:
        self.parts = (setter, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.nn.Linear, (1, 1), self.parts[1], None, None, self.parts[0]


def _zip(path: Path, content: bytes, name: str = "archive/data.pkl", **more: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        for other, data in more.items():
            archive.writestr(other, data)


def _model(thing: Any) -> dict[str, Any]:
    return {"model": {"projector": {"projector.0.weight": torch.zeros(2), "evil": thing}}}


def write(kind: str, path: Path, marker: Path) -> None:
    """Write the hostile file of a kind."""
    code = f"open({str(marker)!r}, 'w').close()"
    shell = f"touch {marker}"
    call = Call(builtins.exec, code)
    inner = io.BytesIO()
    torch.save(call, inner)
    opcodes = {
        "global and reduce, protocol 0": f"cposix\nsystem\n(S'{shell}'\ntR.".encode(),
        "inst": f"(S'{shell}'\niposix\nsystem\n.".encode(),
        "obj": f"(cposix\nsystem\nS'{shell}'\no.".encode(),
        "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"
        + bytes([len(shell)])
        + shell.encode()
        + b"\x85R.",
        "newobj": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c" + bytes([len(code)]) + code.encode() + b"\x85\x81.",
        "two pickles": pickle.dumps({"model": {}}) + pickle.dumps(call),
        "pickle": pickle.dumps(call),
    }
    saved = {
        "reduce of os.system": Call(os.system, shell),
        "reduce of subprocess": Call(subprocess.check_call, ["touch", str(marker)]),
        "reduce of eval": Call(builtins.eval, code),
        "nested in a module's state": _model(call),
        "key of a state": {"model": {"projector": {Call(os.path.join, str(marker)): torch.zeros(1)}}},
        "build": CallWithState(setattr, code),
        "partial": Call(functools.partial, os.system, shell),
        "attrgetter": Call(operator.attrgetter, "system"),
        "import": Call(importlib.import_module, "antigravity"),
        "getattr chain": Call(getattr, Call(importlib.import_module, "os"), "system"),
        "torch's own loader": Call(torch.storage._load_from_bytes, inner.getvalue()),
        "a module": torch.nn.Linear(1, 1),
        "function": {"model": {"projector": {"w": os.system}}},
    }
    if kind in opcodes:
        path.write_bytes(opcodes[kind])
    elif kind in saved:
        torch.save(saved[kind], path)
    elif kind == "older torch format":
        torch.save(call, path, _use_new_zipfile_serialization=False)
    elif kind == "zip by hand":
        _zip(path, opcodes["global and reduce, protocol 0"])
    elif kind == "zip in a zip":
        hidden = path.with_suffix(".inner")
        _zip(hidden, opcodes["pickle"])
        _zip(path, hidden.read_bytes())
    elif kind == "two data.pkl":
        _zip(path, opcodes["pickle"], **{"other/data.pkl": pickle.dumps({"model": {}})})
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name in ("pickle", "storages", "tensors"):
                info = tarfile.TarInfo(name)
                info.size = len(opcodes["pickle"])
                archive.addfile(info, io.BytesIO(opcodes["pickle"]))
    else:
        raise AssertionError(kind)


KINDS = [
    *("global and reduce, protocol 0", "inst", "obj", "stack global", "newobj", "two pickles", "pickle"),
    *("reduce of os.system", "reduce of subprocess", "reduce of eval", "nested in a module's state"),
    *("key of a state", "build", "partial", "attrgetter", "import", "getattr chain", "torch's own loader"),
    *("a module", "function", "older torch format", "zip by hand", "zip in a zip", "two data.pkl", "tar"),
]


def _laughs(depth: int) -> bytes:
    """A list of tuples, each of which holds the one before it twice, and the last as the key of a dict."""
    doubled = b"".join(bytes([0x68, i, 0x68, i, 0x86, 0x71, i + 1]) for i in range(1, depth))
    return b"\x80\x02](" + b")q\x01" + doubled + b"e}" + bytes([0x68, depth]) + b"Ns."


# Cost hours, or the process, in a few bytes. (The tests must not read them with anything but what is tested.)
COSTLY = {
    "three million marks": b"\x80\x02" + b"(" * 3_000_000,
    "three million values": b"\x80\x02" + b"N" * 3_000_000 + b".",
    "a key that is hashed for ever": _laughs(60),
    "a key too deep for the stack": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
}


def write_costly(kind: str, path: Path, zipped: bool) -> None:
    """Write a pickle that takes far longer to read than its size says, in one of torch's two formats."""
    if zipped:
        _zip(path, COSTLY[kind])
        return
    torch.save({}, path, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        for _ in range(3):
            pickle.load(file)
        head = path.read_bytes()[: file.tell()]
    path.write_bytes(head + COSTLY[kind])


def _safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


_TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_TWICE = b'{"projector.w": %s, "projector.w": %s}' % (
    json.dumps(_TENSOR).encode(),
    json.dumps({**_TENSOR, "data_offsets": [8, 16]}).encode(),
)
SAFETENSORS: dict[str, tuple[Any, bytes, int | None]] = {
    "a header of 4 EiB": (b"{}", b"", 1 << 62),
    "a header of 200 MB": (b"{}", b"", 200_000_000),
    "a header of -1": (b"{}", b"", (1 << 64) - 1),
    "the same key twice": (_TWICE, bytes(16), None),
    "overlapping tensors": ({"projector.a": _TENSOR, "projector.b": _TENSOR}, bytes(8), None),
    "a gap": ({"projector.a": {**_TENSOR, "data_offsets": [8, 16]}}, bytes(16), None),
    "beyond the end": ({"projector.a": {**_TENSOR, "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}, bytes(16), None),
    "more elements than numbers": ({"projector.a": {**_TENSOR, "shape": [1 << 40] * 2}}, bytes(8), None),
    "bytes behind": ({"projector.a": _TENSOR}, bytes(64), None),
    "another type": ({"projector.a": {**_TENSOR, "dtype": "PICKLE"}}, bytes(8), None),
    "brackets": (b"[" * 1_000_000, b"", None),
    "a pickle": (pickle.dumps({"model": {}}), b"", None),
}


def write_safetensors(kind: str, path: Path) -> None:
    """Write a safetensors file whose header does not tell the truth."""
    _safetensors(path, *SAFETENSORS[kind])


def write_growing_archive(kind: str, path: Path) -> None:
    """Write a small archive that fills the memory of whoever reads it all."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "packed" else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/version", "3\n")
        if kind == "packed":
            archive.writestr("archive/data.pkl", bytes(200 << 20))
        if kind == "doubled":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for content in (pickle.dumps({"model": {}}), pickle.dumps(Call(os.system, "true"))):
                    archive.writestr("archive/data.pkl", content)
        if kind == "overlapping":
            archive.writestr("archive/data.pkl", bytes(1000))
            for i in range(1000):
                archive.filelist.append(copy.copy(archive.filelist[-1]))
                archive.filelist[-1].filename = f"archive/data/{i}"
