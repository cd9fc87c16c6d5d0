"""Two runs in one folder: the second is refused, whatever is left of a first that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prismatic.train import lock
from prismatic.train.run_dir import prepare_run_dir
from tests.train import fake_run

ROOT = Path(__file__).parents[2]
# A run, and one of the processes that read its data: forked, and still there when the run itself has been killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from prismatic.train import lock
lock.take(Path(sys.argv[1]))
reader = os.fork()
if reader:
    print(reader, flush=True)
time.sleep(60)
"""


@contextmanager
def _holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    reader = int(process.stdout.readline())
    try:
        yield process, reader
    finally:
        os.kill(reader, signal.SIGKILL)
        process.kill()
        process.wait()


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Callable]:
    def make(**values: object):
        return fake_run.make_config(tmp_path, **values)

    yield make
    lock.release(tmp_path / "run")


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_second_run_is_refused_until_the_first_is_gone(config: Callable, tmp_path: Path, resume: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with _holder(folder) as (process, _):
        expected = rf"another run trains in {folder}: process {process.pid} on .* give this one another --run_id"
        with pytest.raises(ValueError, match=expected):
            prepare_run_dir(config(resume=resume))
        assert list(tmp_path.iterdir()) == [folder]  # Nothing was renamed
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert prepare_run_dir(config(resume=resume)) == folder


def test_the_lock_goes_with_a_folder_that_is_set_aside(config: Callable, tmp_path: Path) -> None:
    assert prepare_run_dir(config()) == prepare_run_dir(config(resume="never"))
    assert (tmp_path / "run.replaced-1").is_dir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"process {os.getpid()} on" in done.stderr
