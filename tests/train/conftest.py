"""Runs of the fake model in this process, or in processes of their own that can be killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import runpy
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prismatic import dist
from prismatic.train.trainer import Trainer
from tests.train import fake_run

OWN = (
    "count",
    "dropout",
    "dtype",
    "model_seed",
    "frozen_modules",
)  # Options of make_trainer; the rest are of the config


@pytest.fixture
def launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[int | None], dict[str, Any] | None]]:
    """launch(options, world_size=1) -> (exit codes of the processes, what they left in the result file, or None)."""
    context = multiprocessing.get_context("forkserver")
    # Most of a short life would be imports. The server of the forks must find this package, no other of its name.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    context.set_forkserver_preload(
        ["torch.distributed.checkpoint", "torch.distributed.fsdp", "prismatic.train.trainer"]
    )

    def run(options: dict[str, Any], world_size: int = 1, timeout: float = 60) -> Any:
        out = tmp_path / "result.json"
        out.unlink(missing_ok=True)
        options = {"root": str(tmp_path), "out": str(out), **options}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(world_size):
            environment = {}
            if world_size > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
                environment |= {"LOCAL_WORLD_SIZE": str(options.get("local_world_size", world_size))}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            # By path: the name `tests` may mean somebody else's package in a process that pytest did not set up.
            arguments = {"init_globals": {"OPTIONS": {**options, "environment": environment}}, "run_name": "__main__"}
            processes.append(context.Process(target=runpy.run_path, args=(fake_run.__file__,), kwargs=arguments))
            processes[-1].start()
        for process in processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                pytest.fail(f"a process hung for {timeout} s")
        result = json.loads(out.read_text()) if out.exists() else None
        return [process.exitcode for process in processes], result

    return run


@pytest.fixture
def world() -> dist.World:
    return dist.start("cpu")


@pytest.fixture
def trainer(tmp_path: Path, world: dist.World) -> Callable[..., Trainer]:
    """trainer(count=..., dropout=..., **config) -> a Trainer of the fake model in tmp_path, 8 steps long."""

    def make(**values: Any) -> Trainer:
        own = {name: values.pop(name) for name in OWN if name in values}
        return fake_run.make_trainer(fake_run.make_config(tmp_path, **values), world, **own)

    return make


@pytest.fixture
def file_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """file_limit(n): inside, the system refuses to let any file grow beyond n bytes, as a full disk does."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        # Python ignores SIGXFSZ, so the write fails with EFBIG. Only the soft limit moves: it can be raised again.
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
