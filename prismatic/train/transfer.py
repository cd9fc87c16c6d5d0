"""Micro-batches on their way to the device: the next one is copied while the present one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from prismatic.types import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch on `device`, in order.

    On CUDA the copies run on a stream of their own, one batch ahead of what the caller computes. From pinned memory
    (the loader's) they take nothing from the computation; from pageable memory the copy itself waits. Elsewhere a batch
    is moved when it is asked for.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        present, ahead = ahead, _send(batch, device, stream)
        if present is not None:
            yield _arrived(*present, device)
    if ahead is not None:
        yield _arrived(*ahead, device)


def _send(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        moved = batch.to(device)
        return moved, stream.record_event()


def _arrived(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """The batch, for the stream that computes: it waits for this copy alone, not for the next one."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for value in vars(batch).values():
        if isinstance(value, torch.Tensor):
            # The allocator would otherwise hand the memory to the next copy while this stream still reads it.
            value.record_stream(stream)
    return batch
