"""A look through a pickled checkpoint before torch reads it: what would take far longer than its size says is refused.

`torch.load(weights_only=True)` runs no foreign code, but it walks every opcode in Python and believes every structure:
three million marks cost seconds, a key of tuples in tuples of two hundred bytes costs hours (hashing it looks at each
path through it), and one that is nested deeply enough ends the process.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# A state holds about 30 opcodes a tensor: 10,000 tensors in any file, and more in one that has the bytes for them.
FREE_OPCODES, BYTES_PER_OPCODE = 300_000, 4096
MAX_NESTED = 1000  # things that a tuple holds, counted through all tuples in it; those of a tensor hold some twenty
OLD_FORMAT_PICKLES = 5  # magic number, version, facts of the machine, contents, keys of the storages; then raw numbers

_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}


def check_pickles(path: Path) -> None:
    """Look through the pickles of a file of either of torch's formats; nothing is unpickled.

    Raises pickle.UnpicklingError for one that would cost too much to read; zipfile.BadZipFile or OSError for a file
    that cannot be read. One that holds no whole pickle is left to torch, which refuses it where this look ended.
    """
    allowed = FREE_OPCODES + path.stat().st_size // BYTES_PER_OPCODE
    for stream in _pickles(path):
        allowed -= _scan(stream, allowed)


def check_nesting(stream: BinaryIO) -> None:
    """Look through one pickle that Python's own reader will read, which minds no number of instructions.

    Raises pickle.UnpicklingError for tuples in tuples that would take hours to hash, or end the process.
    """
    _scan(stream, sys.maxsize)


def _pickles(path: Path) -> Iterator[BinaryIO]:
    """The file, standing at the beginning of each pickle that torch would read."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(OLD_FORMAT_PICKLES):
                yield file
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.rpartition("/")[2] == "data.pkl":
                with archive.open(name) as member:
                    yield io.BufferedReader(member)


def _scan(stream: BinaryIO, allowed: int) -> int:
    """The number of instructions of one pickle. Raises pickle.UnpicklingError for a costly one."""
    machine, count = _Machine(), 0
    try:
        for opcode, value, _ in pickletools.genops(stream):
            count += 1
            if count > allowed:
                raise pickle.UnpicklingError("it has more instructions than the weights in a file of its size need")
            machine.run(opcode, value)
    except (ValueError, LookupError):
        pass  # No pickle, or one that takes what is not there: torch stops at this place too
    return count


class _Machine:
    """A pickle machine that knows of each thing its size alone: 1, and of a tuple what is in it besides."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}

    def run(self, opcode: pickletools.OpcodeInfo, value: Any) -> None:
        """Do one instruction. Raises LookupError when it takes what is not there."""
        if opcode.name == "MARK":
            self.marks.append(len(self.sizes))
        elif opcode.name in _PUT:
            self.memo[value] = self.sizes[-1]
        elif opcode.name == "MEMOIZE":
            self.memo[len(self.memo)] = self.sizes[-1]
        elif opcode.name == "DUP":
            self.sizes.append(self.sizes[-1])
        elif opcode.name in _GET:
            self.sizes.append(self.memo[value])
        elif opcode.name in _TUPLES:
            size = 1 + sum(self._take(opcode))
            if size > MAX_NESTED:
                raise pickle.UnpicklingError("it has tuples in tuples, which weights do not have")
            self.sizes.append(size)
        else:
            self._take(opcode)
            self.sizes += [1] * len(opcode.stack_after)

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """Take from the stack what the instruction takes, for some of them down to the newest mark."""
        before = opcode.stack_before
        marked = pickletools.markobject in before
        start = self.marks.pop() - before.index(pickletools.markobject) if marked else len(self.sizes) - len(before)
        if start < 0:
            raise IndexError("the stack is empty")
        taken = self.sizes[start:]
        del self.sizes[start:]
        return taken
