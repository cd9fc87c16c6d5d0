"""What all benchmarks share: lists on the command line, CPU-seconds of this process, the two lines that are printed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

# Before NumPy or Torch come in: waiting threads must not burn the CPU-seconds that are measured.
for _name, _value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
    os.environ.setdefault(_name, _value)

T = TypeVar("T")


class Several(argparse.Action):
    """Values with commas or blanks between them: `--n 8k,20k` and `--n 8k 20k`. read: makes a value of a text."""

    def __init__(self, *args: Any, read: Callable[[str], Any] = str, choices: Any = None, **more: Any) -> None:
        super().__init__(*args, nargs="*", **more)
        self.read, self.known = read, choices
        if choices is not None:
            self.help = f"{self.help + '; ' if self.help else ''}of {', '.join(map(str, choices))}"

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, texts: Any, option: str | None = None) -> None:
        """Raises ArgumentError for what cannot be read, or is not known."""
        found: list[Any] = []
        for text in [part for whole in texts for part in whole.split(",") if part]:
            try:
                value = self.read(text)
            except ValueError as error:
                raise argparse.ArgumentError(self, str(error)) from error
            if self.known is not None and value not in self.known:
                raise argparse.ArgumentError(self, f"{text} is none of {', '.join(map(str, self.known))}")
            found += value if isinstance(value, list) else [value]
        setattr(namespace, self.dest, found)


def amount(text: str) -> int:
    """8000, 8k or 1M. Raises ValueError."""
    digits, unit = (text[:-1], text[-1]) if text[-1] in "kM" else (text, "")
    return int(float(digits) * {"": 1, "k": 1000, "M": 1_000_000}[unit])


def doubling(text: str) -> list[int]:
    """4, or 1..64 for 1, 2, 4 and so on up to 64. Raises ValueError."""
    first, dots, last = text.partition("..")
    found = [int(first)]
    while dots and found[-1] * 2 <= int(last):
        found.append(found[-1] * 2)
    return found


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


def wait(device: Any) -> None:
    """Until a GPU (a torch.device) has done what it was given; a CPU has by then."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


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
