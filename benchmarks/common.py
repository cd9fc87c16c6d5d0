"""What every benchmark prints and measures with: one JSON line, one line to read, CPU-seconds of this process."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

# Before NumPy or Torch come in: waiting threads must not burn the CPU-seconds that are measured, and memory comes in
# large pages, for ours and for the peers, as it does in scripts (prismatic/conf/cli.py).
for _name, _value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0"), ("THP_MEM_ALLOC_ENABLE", "1")):
    os.environ.setdefault(_name, _value)

T = TypeVar("T")


@dataclass
class Cost:
    """CPU-seconds (user and system, all threads) and wall seconds of a block, and load of the machine meanwhile."""

    cpu: float = 0.0
    wall: float = 0.0
    busy: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Fill the Cost when the block ends. busy: share of all cores in use by anyone, 0 to 1."""
    cost = Cost()
    before, started = _ticks(), (time.process_time(), time.perf_counter())
    yield cost
    cost.cpu, cost.wall = time.process_time() - started[0], time.perf_counter() - started[1]
    after = _ticks()
    cost.busy = round((after[0] - before[0]) / max(1, after[1] - before[1]), 2)


def best_of(repeats: int, *runs: Callable[[], T]) -> list[tuple[T, Cost]]:
    """Each run `repeats` times, taking turns (A B A B ...); the result and the cost with the fewest CPU-seconds."""
    best: list[tuple[T, Cost] | None] = [None] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            with measured() as cost:
                result = run()
            kept = best[i]
            if kept is None or cost.cpu < kept[1].cpu:
                best[i] = result, cost
    return [b for b in best if b is not None]


def peak_memory() -> float:
    """Largest resident memory of this process so far, GiB (Linux; pages of mapped files count while they are in)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def report(name: str, line: str, **values: Any) -> None:
    """Print the line to read and the line for machines."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
    machine = {"cores": os.cpu_count(), "processor": _processor(), "load": round(os.getloadavg()[0], 1)}
    print(line, flush=True)
    print(json.dumps({"benchmark": name, **rounded, "machine": machine}), flush=True)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _ticks() -> tuple[int, int]:
    """(busy, all) clock ticks of all cores since the start of the machine."""
    with open("/proc/stat", encoding="utf-8") as file:
        values = [int(v) for v in file.readline().split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)
