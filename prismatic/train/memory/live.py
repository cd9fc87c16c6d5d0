"""Counting the bytes that are alive while a program runs on the meta device, where nothing is computed."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # CUDA's caching allocator gives memory in multiples of this many bytes


class LiveBytes(TorchDispatchMode):
    """While active, adds up the storages that operations make, until nothing refers to them.

    peak: the most at a time, in bytes as an allocator gives them. at_peak: these bytes by the kind under which they
    were made (see `kind`). Tensors that were there before are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._total = 0
        self._kind = "activations"
        self._seen: dict[int, object] = {}

    @contextmanager
    def kind(self, name: str) -> Iterator[None]:
        """Storages made inside are of this kind."""
        before, self._kind = self._kind, name
        try:
            yield
        finally:
            self._kind = before

    def hold(self, size: float, kind: str) -> torch.Tensor:
        """`size` bytes that are alive as long as the tensor that is given back."""
        with self.kind(kind), self:
            return torch.empty(int(size), dtype=torch.uint8, device="meta")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what came out."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            # Code that asks whether all of a mask is plain is told so: attention without a mask is what is counted.
            return True
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return result

    def ignore(self, tensors: Any) -> None:
        """Do not count these, whatever operations return views of them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = storage

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size, kind = -(-storage.nbytes() // BLOCK) * BLOCK, self._kind
        self._seen[key] = weakref.finalize(storage, self._forget, key, size, kind)
        self.now[kind] += size
        self._total += size
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, dict(self.now)

    def _forget(self, key: int, size: int, kind: str) -> None:
        if self._seen.pop(key, None) is not None:
            self.now[kind] -= size
            self._total -= size
