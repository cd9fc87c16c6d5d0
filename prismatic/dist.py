"""The process group: which process this is, on which device, and the few collectives that the project needs.

A single process gets a group as well, so that there is one code path. Small numbers and Python objects travel over
gloo on the CPU on every machine: they never make a GPU wait.
"""

from __future__ import annotations

import datetime
import gc
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

# Rank 0 writes whole checkpoints while the others wait in a collective: 28 GB on a slow disk take minutes.
TIMEOUT = datetime.timedelta(minutes=30)


_LOST = (
    "Connection reset by peer",
    "Connection closed by peer",
    "Broken pipe",
    "Socket closed",
    "remote process exited",
)


@dataclass(frozen=True)
class World:
    """This process among all.

    rank: number of this process over all machines; local_rank: on this machine; world_size: how many there are;
    local_world_size: how many on this machine; backend: what `init_process_group` was given.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    backend: str
    local_world_size: int = 1


def start(device: str = "auto") -> World:
    """Join the process group that torchrun describes, or make one of a single process.

    Args:
        device: "auto" (CUDA where there is a GPU), "cpu" or "cuda".

    Raises ValueError when CUDA is asked for and absent, or when there are more processes than GPUs on this machine.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got '{device}'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA GPU here; pass --device cpu, or install a CUDA build")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if use_cuda:
        if local_world_size > torch.cuda.device_count():
            raise ValueError(
                f"{local_world_size} processes on a machine with {torch.cuda.device_count()} GPU(s); pass "
                f"torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu"
            )
        torch.cuda.set_device(local_rank)
    where = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(_agree_on_life(store, rank, world_size), store)
        device_id = where if use_cuda else None
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT, device_id=device_id
        )
    else:
        # A store inside this process: no port to pick, none to clash.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    return World(rank, local_rank, world_size, where, backend, local_world_size)


def _agree_on_life(store: dist.Store, rank: int, world_size: int) -> str:
    """A name that the processes of this life of the group have in common, and no earlier life had.

    torchrun's store outlives the processes: after a restart (--max-restarts) it still holds the addresses of the dead
    ones (pytorch issue 135712), and its restart count differs from machine to machine. So each process leaves a word of
    its own; rank 0 answers with the words that it has read, again and again, until each finds its own among them.
    """
    word, deadline = uuid.uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()
    others = range(1, world_size)
    if rank:
        store.set(f"prismatic/word/{rank}", word)
    while time.monotonic() < deadline:
        if rank == 0:
            heard = [n for n in others if store.check([f"prismatic/word/{n}"])]
            words = {n: store.get(f"prismatic/word/{n}").decode() for n in heard}
            store.set("prismatic/answer", json.dumps({"life": word, "words": words}))
            if all(store.check([f"prismatic/{word}/{n}"]) for n in others):
                return word
        elif store.check(["prismatic/answer"]):
            answer = json.loads(store.get("prismatic/answer"))
            if answer["words"].get(str(rank)) == word:
                store.set(f"prismatic/{answer['life']}/{rank}", "here")
                return answer["life"]
        time.sleep(0.02)
    raise ValueError(f"not all of {world_size} processes came to the start within {TIMEOUT}; look at their own output")


def stop(*holders: Any, failed: bool = False) -> None:
    """Leave the process group, at the very end of a script.

    Args:
        holders: objects that hold sharded modules (the trainer, the model). They are emptied, because a sharded module
            that is alive when the interpreter ends makes it abort now and then, after all work is done.
        failed: this process is leaving because of an error: do not wait for the others, who are not coming.
    """
    for holder in holders:
        vars(holder).clear()
    gc.collect()
    if not dist.is_initialized():
        return
    if not failed:
        dist.barrier()
        dist.destroy_process_group()
    elif dist.get_world_size() == 1 or "nccl" not in dist.get_backend_config():
        # NCCL's own teardown waits for peers; after an error the exit of this process is what tells them.
        dist.destroy_process_group()


def rank_zero() -> bool:
    """Whether this process is the one that prints and writes."""
    return not _many() or dist.get_rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if _many():
        dist.barrier()


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Sums each number over all processes, in float64 (counts below 2**53 stay exact)."""
    if not _many():
        return [float(value) for value in values]
    total = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def broadcast_object(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Rank 0's `value`, on every process. group: of `side_group`, in a thread beside the main one."""
    if not _many():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every process's `value` in the order of ranks, on every process. group: as for `broadcast_object`."""
    if not _many():
        return [value]
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, value, group=group)
    return boxes


def side_group(ranks: Sequence[int] | None = None) -> dist.ProcessGroup:
    """A gloo group of all processes, or of `ranks`, for one thread beside the main one; every process calls it.

    Collectives of two threads over one group would meet in another order on each process.
    """
    return dist.new_group(ranks=None if ranks is None else list(ranks), backend="gloo", timeout=TIMEOUT)


def raise_together(problem: Exception | None) -> None:
    """Raise an error of any process on all of them; every process calls it.

    The process concerned raises `problem` itself, the others a ValueError that quotes it. Without this they would sit
    in their next collective until the connection breaks, and say only that.
    """
    if not all_reduce_sum([problem is not None])[0]:
        return
    texts = gather_objects(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
    raise ValueError(f"process {rank} stopped: {text}")


class LostProcessError(OSError):
    """Another process of the run is gone."""


@contextmanager
def losses_told() -> Iterator[None]:
    """Raise LostProcessError when a collective inside fails because another process has died: that one has the reason.

    Without this it is a page of somebody else's traceback.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError, with the place in its source and the system's words for what happened.
        reason = next((words for words in _LOST if words.lower() in str(error).lower()), None)
        if reason is None or not _many():
            raise
        raise LostProcessError(
            f"another process of this run is gone ({reason}); its last words say why. The same command goes on from "
            "the newest checkpoint; `torchrun --max-restarts 3` gives it by itself"
        ) from error


class _ConsoleHandler(logging.Handler):
    """Writes to stderr through tqdm when a bar is on the screen, so that a line does not tear the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:  # a log file on a full disk, a closed pipe: no reason to stop a run
            self.handleError(record)


def setup_logging(world: World | None = None) -> None:
    """Log lines of this package on stderr: rank 0 from INFO, the others from WARNING with their rank in front."""
    rank = world.rank if world is not None else int(os.environ.get("RANK", 0))
    logger = logging.getLogger("prismatic")
    for handler in [h for h in logger.handlers if isinstance(h, _ConsoleHandler)]:
        logger.removeHandler(handler)
    handler = _ConsoleHandler()
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(_Formatter(prefix))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
    # torchao, where it is installed, is imported by other libraries and warns of its own calls on every process.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


class _Formatter(logging.Formatter):
    """`12:34:56  text`, with the level's name where it is more than information."""

    def __init__(self, prefix: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        text = f"{self.formatTime(record, self.datefmt)}  {self._prefix}{level}{record.getMessage()}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
