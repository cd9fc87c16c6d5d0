"""How long it takes before anything happens: importing the package, importing what loads a model, `--help`.

    python benchmarks/bench_import.py

CPU-seconds of a process of its own, the best of several. Beside them `import torch` and `import transformers`, which
whatever loads a model has to pay for.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from common import report

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python": ["-c", "pass"],
    "import prismatic": ["-c", "import prismatic"],
    "import what loads models": ["-c", "import prismatic; prismatic.load"],
    "import torch": ["-c", "import torch"],
    "import torch, transformers": ["-c", "import torch, transformers"],
    "pretrain.py --help": ["scripts/pretrain.py", "--help"],
    "generate.py --help": ["scripts/generate.py", "--help"],
    "evaluate.py --help": ["scripts/evaluate.py", "--help"],
    "webvid.py --help": ["scripts/webvid.py", "--help"],
}
HELP_TARGET_S, IMPORT_TARGET_S = 0.4, 1.2


def cost(args: list[str]) -> tuple[float, float]:
    """(CPU-seconds, wall seconds) of a Python process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *args], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - started


def main() -> None:
    """Parse, measure in turns, two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts")
    args = parser.parse_args()
    best: dict[str, tuple[float, float]] = {}
    for _ in range(args.repeats):
        for name, command in COMMANDS.items():
            best[name] = min(best.get(name, (1e9, 1e9)), cost(command))
    helps = max(cpu for name, (cpu, _) in best.items() if name.endswith("--help"))
    imports = best["import what loads models"][0]
    listed = ", ".join(f"{name} {cpu:.2f}" for name, (cpu, _) in best.items())
    report(
        "import",
        f"CPU-s: {listed}; slowest --help {helps:.2f} (target {HELP_TARGET_S}), import {imports:.2f} "
        f"(target {IMPORT_TARGET_S})",
        cpu_s={name: round(cpu, 3) for name, (cpu, _) in best.items()},
        wall_s={name: round(wall, 3) for name, (_, wall) in best.items()},
    )


if __name__ == "__main__":
    main()
