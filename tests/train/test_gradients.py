"""The gradient of a step depends on its examples alone: not on micro-batches, packing, or the number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic import dist
from tests.train import gradients

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    gradients.write_data(root)
    return root


@pytest.fixture(scope="module")
def expected(data: Path) -> dict[str, torch.Tensor]:
    """Of all eight examples in one forward pass: 1 x 8."""
    world = dist.start("cpu")
    found = gradients.first_gradient(data, gradients.GLOBAL, world)
    torch.distributed.destroy_process_group()
    assert sum(float(g.abs().sum()) > 0 for g in found.values()) > 20
    return found


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # 1e-6 of the largest: single numbers of a sum in another order differ by a few units of its last place.
        limit = 1e-6 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=limit, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(("micro_batches", "packing"), [(2, True), (4, True), (8, True), (1, False), (4, False)])
def test_micro_batches_and_packing(data: Path, expected: dict, micro_batches: int, packing: bool) -> None:
    world = dist.start("cpu")
    found = gradients.first_gradient(data, gradients.GLOBAL // micro_batches, world, packing)
    _assert_same(found, expected)


def test_two_processes_with_batches_of_their_own_and_shared_ones(data: Path, expected: dict, tmp_path: Path) -> None:
    options = {"root": str(data), "layouts": [[4, 1], [2, 1], [8, 2], [2, 2]], "out": str(tmp_path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, gradients.__file__, json.dumps(options)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    for size, context in options["layouts"]:
        _assert_same(load_file(tmp_path / f"{size}-{context}.safetensors"), expected)
