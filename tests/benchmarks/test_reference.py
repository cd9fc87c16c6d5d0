"""The peer of the training benchmarks computes what we compute: losses, gradients, weights after steps."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch):
    """The modules `workload` and `reference` of the folder of benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import reference
    import workload

    yield workload, reference
    for name in ("bench_train", "common", "reference", "workload"):
        sys.modules.pop(name, None)


def test_reference_has_our_loss_and_gradients_on_ragged_clips(modules, tmp_path):
    workload, reference = modules
    vlm = workload.build_model(workload.WORKLOADS["tiny"])
    dataset = workload.build_dataset(vlm, workload.write_clips(tmp_path, [1, 3, 2, 2]))
    assert len(dataset.tokens_of(workload.records_of(dataset)[0]).input_ids) - vlm.tokens_per_clip(1) < 120
    peer = reference.Reference(copy.deepcopy(vlm))
    batch = next(workload.build_loader(dataset, 4).iterate(0))[0]
    ours = vlm.train()(batch)
    (ours.loss_sum / ours.num_tokens).backward()
    loss = peer.loss(reference.read_batch(dataset, workload.records_of(dataset)))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(ours.loss_sum.detach()) / int(ours.num_tokens), rel=1e-6)
    theirs = {n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in workload.trained(peer.vlm).items()}
    for name, parameter in workload.trained(vlm).items():
        torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-6, rtol=1e-4, msg=name)


def test_reference_learns(modules, tmp_path):
    workload, reference = modules
    vlm = workload.build_model(workload.WORKLOADS["tiny"])
    dataset = workload.build_dataset(vlm, workload.write_clips(tmp_path, [2, 2]))
    peer = reference.Reference(vlm, learning_rate=1e-2)
    batch = reference.read_batch(dataset, workload.records_of(dataset))
    losses = [peer.step(batch) for _ in range(4)]
    assert losses[-1] < losses[0] - 0.5


def test_a_race_of_steps_is_gated_and_reported(modules, monkeypatch, capsys):
    import bench_train

    arguments = ["bench_train.py", "--config", "tiny", "--steps", "3", "--aggregator", "concat", "stpool"]
    monkeypatch.setattr(sys, "argv", arguments)
    bench_train.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert [row["aggregator"] for row in rows] == ["concat", "stpool"] and len(lines) == 4
    assert all(row["ratio"] > 0 and float(row["weight_drift"]) < 1e-3 for row in rows)
    assert "another model" in lines[2] and "another model" not in lines[0]
    monkeypatch.setattr(bench_train, "LOSS_GATE", 0.0)
    monkeypatch.setattr(sys, "argv", arguments[:5])
    bench_train.main()
    assert "NOT EQUAL" in capsys.readouterr().out
