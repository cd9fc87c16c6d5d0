"""Reading a sharded checkpoint without running what it says.

torch.distributed.checkpoint keeps its table of contents as a pickle and loads it, and any value that is not a tensor,
without restriction. Ours hold tensors only, so the table may name a few classes and no more.
"""

from __future__ import annotations

import enum
import pathlib
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from prismatic.models.pickle_scan import check_nesting

_FUNCTIONS = {("torch.serialization", "_get_layout")}
_CLASSES = {("torch", "Size"), ("collections", "OrderedDict")}
_PATHS = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}  # where it was once written


def _member(kind: Any, name: Any) -> Any:
    """A member of an enumeration by its name."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and name in kind.__members__:
        return kind.__members__[name]
    raise pickle.UnpicklingError("the checkpoint's .metadata asks for an attribute, which no checkpoint needs")


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member  # Before Python 3.11.4 a member of an enumeration is pickled as getattr(class, name)
        if module in ("pathlib", "pathlib._local") and name in _PATHS:  # the latter in Python 3.13
            return _PATHS[name]
        # A dotted name would walk from an allowed module into whatever it imports.
        if "." not in name:
            if (module, name) in _FUNCTIONS | _CLASSES:
                return super().find_class(module, name)
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            if module.startswith("torch.distributed.checkpoint."):
                found = super().find_class(module, name)
                if isinstance(found, type) and found.__module__.startswith("torch.distributed.checkpoint."):
                    return found
        raise pickle.UnpicklingError(f"the checkpoint's .metadata asks for {module}.{name}, which no checkpoint needs")


class TensorReader(FileSystemReader):
    """A FileSystemReader that reads the table of contents with a short list of allowed classes."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents. Raises pickle.UnpicklingError when it names anything else, or nests it too deeply."""
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as stream:
            try:
                check_nesting(stream)
            except pickle.UnpicklingError as error:
                raise pickle.UnpicklingError(f"the checkpoint's .metadata is not read: {error}") from error
            stream.seek(0)
            table = _TableUnpickler(stream).load()
        if not isinstance(table, Metadata):
            raise pickle.UnpicklingError(f"the checkpoint's .metadata holds a {type(table).__name__}")
        if getattr(table, "storage_meta", None) is None:
            table.storage_meta = StorageMeta()
        table.storage_meta.load_id = self.load_id
        return table


class TensorPlanner(DefaultLoadPlanner):
    """A load planner that takes tensors and nothing else."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Raises pickle.UnpicklingError: our checkpoints hold no pickled values."""
        raise pickle.UnpicklingError(f"the checkpoint holds a pickled value: {read_item.storage_index.fqn}")
