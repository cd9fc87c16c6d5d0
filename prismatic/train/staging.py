"""Host copies of what a checkpoint holds, in memory that is used again.

Weights and optimizer state change in the optimizer's step only, so they are copied while the next forward and backward
pass compute: on a GPU by a stream of its own into pinned memory, on a CPU by a thread. The next step of the optimizer
waits for the copy to be complete (`before_update`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from prismatic.train.files import show_bytes
from prismatic.train.threads import in_thread

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
        self._copies: dict[tuple[str, ...], torch.Tensor] = {}  # The same memory, as a part of a sharded tensor
        self._meshes: dict[DeviceMesh, DeviceMesh] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._event: torch.cuda.Event | None = None
        self._thread: Future[None] | None = None

    def prepare_meshes(self, vlm: nn.Module) -> None:
        """Make the host's picture of how processes are arranged; every process calls it (it makes process groups)."""
        for parameter in vlm.parameters():
            if isinstance(parameter, DTensor):
                self._host_mesh(parameter.device_mesh)

    def reserve(self, tree: Tree) -> None:
        """Take the memory for copies of `tree` and touch it: new pages cost far more than the copying itself."""
        self.claim_device()
        for path, tensor in leaves(tree):
            self._buffer(path, local(tensor)).zero_()

    def claim_device(self) -> None:
        """First in a thread: CUDA's current device is each thread's own, and would be that of another process."""
        if self._stream is not None:
            torch.cuda.set_device(self._device)

    def copy(self, tree: Tree) -> Tree:
        """Copies of all tensors, on the host; one that stands in `tree` twice is copied once.

        They are complete after `wait`, and overwritten by the next `copy`, which may not come before.
        """
        now: list[tuple[torch.Tensor, torch.Tensor]] = []
        beside: list[tuple[torch.Tensor, torch.Tensor]] = []
        copies = self._plan(tree, now, beside)
        _copy(now)
        if self._stream is None:
            self._thread = in_thread(lambda: _copy(beside))
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                _copy(beside)
            self._event = self._stream.record_event()
        return copies

    def wait(self) -> None:
        """Return when the last copy is complete."""
        if self._thread is not None:
            self._thread.result()
        if self._event is not None:
            self._event.synchronize()

    def before_update(self, *_: Any) -> None:
        """Before anything that was copied may change; a hook of the optimizer. A GPU waits without this process."""
        if self._thread is not None:
            self._thread.result()
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def release(self) -> None:
        """Give the memory back."""
        self._buffers.clear()
        self._copies.clear()

    def _plan(
        self, tree: Tree, now: list, beside: list, prefix: tuple[str, ...] = (), seen: dict | None = None
    ) -> Tree:
        seen = {} if seen is None else seen
        copies: Tree = {}
        for name, value in tree.items():
            path = (*prefix, name)
            if isinstance(value, Mapping):
                copies[name] = self._plan(value, now, beside, path, seen)
                continue
            if id(value) not in seen:
                part = local(value)
                buffer = self._buffer(path, part)
                # A forward pass changes some buffers of the model (batch statistics): no time for these.
                still = path[0] != "model" or isinstance(value, nn.Parameter)
                (beside if still else now).append((buffer, part))
                seen[id(value)] = self._copy_of(path, value, buffer)
            copies[name] = seen[id(value)]
        return copies

    def _buffer(self, path: tuple[str, ...], part: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != part.shape or buffer.dtype != part.dtype:
            buffer = torch.empty(part.shape, dtype=part.dtype, pin_memory=self._stream is not None)
            self._buffers[path] = buffer
            self._copies.pop(path, None)
        return buffer

    def _copy_of(self, path: tuple[str, ...], tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        if path not in self._copies:
            if isinstance(tensor, DTensor):
                mesh, places = self._host_mesh(tensor.device_mesh), tensor.placements
                shape = {"shape": tensor.shape, "stride": tensor.stride()}
                self._copies[path] = DTensor.from_local(buffer, mesh, places, run_check=False, **shape)
            else:
                self._copies[path] = buffer
        return self._copies[path]

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


def _copy(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source, non_blocking=True)  # Between two CPU tensors this is a plain copy
