"""Host copies of what a checkpoint holds, in memory that is used again: the only part of a save that a step waits for.

On a GPU the copy runs on a stream of its own into pinned memory while the next step computes; only the next update of
the weights waits for it (`before_update`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from prismatic.train.files import show_bytes

log = logging.getLogger(__name__)

Tree = dict[str, Any]  # Of tensors, nested
MEMORY_SHARE = 0.8  # Of the memory that is available; the rest is for whatever else grows


def leaves(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """(path, tensor) of a nested dictionary, in its order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor, sharing its memory."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def num_bytes(tree: Mapping[str, Any], *, whole: bool = False) -> int:
    """Bytes of this process's parts of all tensors, or of the whole tensors."""
    tensors = [tensor if whole else local(tensor) for _, tensor in leaves(tree)]
    return sum(t.numel() * t.element_size() for t in tensors)


class Staging:
    """Copies trees of tensors of one and the same form to the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, ...], torch.Tensor] = {}
        self._meshes: dict[DeviceMesh, DeviceMesh] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._done: torch.cuda.Event | None = None

    def prepare_meshes(self, vlm: nn.Module) -> None:
        """Make the host's picture of how processes are arranged; every process calls it (it makes process groups)."""
        for parameter in vlm.parameters():
            if isinstance(parameter, DTensor):
                self._host_mesh(parameter.device_mesh)

    def reserve(self, tree: Tree) -> None:
        """Take the memory for copies of `tree` and touch it: new pages cost far more than the copying itself."""
        for path, tensor in leaves(tree):
            self._buffer(path, local(tensor)).zero_()

    def copy(self, tree: Tree) -> Tree:
        """Copies of all tensors, on the host; one that stands in `tree` twice is copied once.

        They are complete after `wait`, and overwritten by the next `copy`.
        """
        if self._stream is not None:
            return self._copy_beside(tree)
        return self._copies(tree, lambda path, tensor: True)

    def wait(self) -> None:
        """Return when the last copy is complete; for the thread that writes."""
        if self._done is not None:
            self._done.synchronize()

    def before_update(self, *_: Any) -> None:
        """Have the device finish the copy before it changes what is being copied; a hook of the optimizer."""
        if self._done is not None:
            torch.cuda.current_stream(self._device).wait_event(self._done)

    def release(self) -> None:
        """Give the memory back."""
        self._buffers.clear()

    def _copy_beside(self, tree: Tree) -> Tree:
        assert self._stream is not None
        # A forward pass changes some buffers (batch statistics), so these are copied in line with it; weights and the
        # optimizer's state change in the update only.
        self._copies(tree, lambda path, tensor: path[0] == "model" and not isinstance(tensor, nn.Parameter))
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copies = self._copies(tree, lambda path, tensor: path[0] != "model" or isinstance(tensor, nn.Parameter))
        self._done = self._stream.record_event()
        return copies

    def _copies(self, tree: Tree, wanted: Any, prefix: tuple[str, ...] = (), seen: dict | None = None) -> Tree:
        seen = {} if seen is None else seen
        copies: Tree = {}
        for name, value in tree.items():
            path = (*prefix, name)
            if isinstance(value, Mapping):
                copies[name] = self._copies(value, wanted, path, seen)
                continue
            if id(value) not in seen:
                part = local(value)
                buffer = self._buffer(path, part)
                if wanted(path, value):
                    buffer.copy_(part, non_blocking=self._stream is not None)
                seen[id(value)] = self._like(value, buffer)
            copies[name] = seen[id(value)]
        return copies

    def _buffer(self, path: tuple[str, ...], part: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != part.shape or buffer.dtype != part.dtype:
            buffer = torch.empty(part.shape, dtype=part.dtype, pin_memory=self._stream is not None)
            self._buffers[path] = buffer
        return buffer

    def _like(self, tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, DTensor):
            return buffer
        mesh = self._host_mesh(tensor.device_mesh)
        return DTensor.from_local(
            buffer, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    def _host_mesh(self, mesh: DeviceMesh) -> DeviceMesh:
        if mesh.device_type == "cpu":
            return mesh
        if mesh not in self._meshes:
            self._meshes[mesh] = DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)
        return self._meshes[mesh]


def fits_memory(needed: int) -> bool:
    """Whether this machine can spare `needed` bytes for copies; said when it cannot. True where it cannot be known."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(1024 * int(row.split()[1]) for row in text.splitlines() if row.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return True
    if needed <= MEMORY_SHARE * available:
        return True
    log.warning(
        f"Copies of what a checkpoint holds would take {show_bytes(needed)} of the {show_bytes(available)} of memory "
        "that are available: checkpoints are written while the training waits (--checkpoint_async false)"
    )
    return False
