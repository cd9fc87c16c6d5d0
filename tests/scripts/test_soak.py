"""Two thousand steps of the whole machinery after a thousand to warm up: nothing grows, nothing slows down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.conftest import ROOT, script_environment


@pytest.mark.slow
def test_two_thousand_steps(data_root: Path, tmp_path: Path) -> None:
    # In a process of its own: pytest keeps what is logged and warned of.
    command = [sys.executable, str(ROOT / "tests/scripts/long_run.py"), str(data_root), str(tmp_path)]
    done = subprocess.run(command, env=script_environment(), stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["MiB per 1000 steps"] <= 0.5, figures
    assert abs(figures["files"]) <= 1 and figures["shm"] <= 8, figures
    assert figures["step"] <= 0.02, figures
