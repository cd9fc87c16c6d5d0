"""Several machines: two agents of torchrun on this one, which find each other at an address."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic.train import weights
from prismatic.train.trainer import Trainer
from tests.train import fake_run, gradients

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _agents(commands: list[list[str]], **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Run one agent a machine, all at once."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    running = [subprocess.Popen(command, env={**ENVIRONMENT, **environment}, **options) for command in commands]
    outputs = [process.communicate(timeout=240)[0] for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, output)
        for process, output in zip(running, outputs, strict=True)
    ]


@pytest.mark.parametrize("strategy", ["fsdp-hybrid"])
def test_two_agents_train_what_one_process_trains(
    tmp_path: Path, trainer: Callable[..., Trainer], strategy: str
) -> None:
    alone = trainer(run_id="alone")
    assert alone.fit() is None
    out = tmp_path / "result.json"
    options = {"root": str(tmp_path), "out": str(out), "config": {"model_finetune_train_strategy": strategy}}
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{_port()}", "--rdzv-id", "job"]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]
    done = _agents([[*agent, fake_run.__file__, json.dumps(options)]] * 2)
    assert [d.returncode for d in done] == [0, 0], done[0].stdout[-2000:]
    result = json.loads(out.read_text())
    assert result["losses"] == pytest.approx(alone.losses, rel=1e-6)
    state = load_file(f"{out}.safetensors")
    for name, value in weights.gather(alone.vlm, alone.trained_modules).items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    assert sum(d.stdout.count("Done: 8 steps") for d in done) == 1  # One voice over all machines


@pytest.mark.slow
def test_the_recipe_trains_on_two_machines(tmp_path: Path) -> None:
    gradients.write_data(tmp_path)
    recipe = str(ROOT / "experiment_scripts" / "multi_node.sh")
    flags = (
        "--model.type tiny-video --stage full-finetune --model.num_frames 4 --model.finetune_global_batch_size 4 "
        "--model.finetune_per_device_batch_size 1 --model.finetune_max_steps 2 --device cpu --dataset.type custom "
        f"--dataset.num_workers 0 --dataset.dataset_root_dir {tmp_path} --run_root_dir {tmp_path} --run_id two"
    ).split()
    flags += ["--dataset.finetune_stage_components", '["a.json", "media"]', "--trackers", '["jsonl"]']
    # The recipe's own strategy, fsdp-hybrid: a copy of the weights on each machine.
    environment = {"NNODES": "2", "NGPU": "1", "PORT": str(_port()), "RESTARTS": "0", "PYTHON": sys.executable}
    done = _agents([[recipe, *flags]] * 2, **environment)
    assert [d.returncode for d in done] == [0, 0], done[0].stdout[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "two" / "two.jsonl").read_text().splitlines()]
    assert [row["Full-finetune/Step"] for row in rows if "Full-finetune/Loss (Raw)" in row] == [1, 2]
    assert (tmp_path / "two" / "checkpoints" / "step-000002").is_dir()


@pytest.mark.slow
def test_a_run_with_shared_batches_is_the_run_of_one_process(tmp_path: Path) -> None:
    gradients.write_data(tmp_path)
    flags = (
        "--model.type tiny-video --stage full-finetune --model.num_frames 4 --model.finetune_global_batch_size 4 "
        "--model.finetune_per_device_batch_size 2 --model.finetune_max_steps 3 --device cpu --dataset.type custom "
        f"--dataset.num_workers 1 --dataset.dataset_root_dir {tmp_path} --run_root_dir {tmp_path} "
        f"--val_dataset.type custom --val_dataset.num_workers 0 --val_dataset.dataset_root_dir {tmp_path} "
        "--longest_batch_first always --checkpoint_interval 2"
    ).split()
    components = '["a.json", "media"]'
    flags += ["--dataset.finetune_stage_components", components, "--trackers", '["jsonl"]']
    flags += ["--val_dataset.finetune_stage_components", components]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    one = [*torchrun, "1", "scripts/pretrain.py", *flags, "--run_id", "one"]
    two = [*torchrun, "2", "scripts/pretrain.py", *flags, "--run_id", "two", "--context_parallel_size", "2"]
    rows = {}
    for name, command in (("one", one), ("two", two)):
        (done,) = _agents([command])
        assert done.returncode == 0, done.stdout[-3000:]
        assert done.stdout.count("the longest batch first: ") == 1
        rows[name] = [json.loads(line) for line in (tmp_path / name / f"{name}.jsonl").read_text().splitlines()]
    for key in ("Loss (Raw)", "Gradient Norm", "Validation Loss", "Validation Tokens", "Skipped"):
        a, b = ([row[f"Full-finetune/{key}"] for row in rows[n] if f"Full-finetune/{key}" in row] for n in rows)
        assert a and b == pytest.approx(a, rel=1e-5), key
