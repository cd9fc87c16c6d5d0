"""Checkpoint files that would run code if they were unpickled without care. Each one would write `marker`."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import operator
import os
import pickle
import subprocess
import tarfile
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
