"""The process group of one, its end, and log lines; several processes are in tests/train/test_two_ranks.py."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch

from prismatic import dist


def test_a_single_process_gets_a_group_and_can_leave_and_come_back() -> None:
    for _ in range(2):
        world = dist.start("cpu")
        assert (world.rank, world.local_rank, world.world_size) == (0, 0, 1)
        assert world.device == torch.device("cpu") and world.backend == "gloo"
        assert torch.distributed.is_initialized()
        dist.stop()
        assert not torch.distributed.is_initialized()


def test_collectives_work_with_one_process_and_without_a_group() -> None:
    for begin in (lambda: None, lambda: dist.start("cpu")):
        begin()
        assert dist.all_reduce_sum([1, 2.5, 2**53 - 1]) == [1.0, 2.5, float(2**53 - 1)]
        assert dist.broadcast_object({"a": 1}) == {"a": 1}
        assert dist.gather_objects("x") == ["x"]
        assert dist.rank_zero()
        dist.barrier()


def test_stop_lets_go_of_what_its_holders_hold() -> None:
    class Holder:
        pass

    dist.start("cpu")
    holder = Holder()
    holder.model = torch.nn.Linear(2, 2)
    holder.model.cycle = holder
    model = weakref.ref(holder.model)
    dist.stop(holder)
    gc.collect()
    assert model() is None and not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU")
def test_cuda_without_a_gpu_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match="--device cuda: PyTorch sees no CUDA GPU here; pass --device cpu"):
        dist.start("cuda")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"4 processes on a machine with 2 GPU\(s\); pass torchrun --nproc-per-node 2"):
        dist.start("auto")


def test_another_process_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    gloo = "[pair.cc:545] Read error [127.0.0.1]:6533: Connection reset by peer. Check the logs"
    with pytest.raises(RuntimeError, match="Read error"), dist.losses_told():
        raise RuntimeError(gloo)  # one process has no peer: the error is about something else
    monkeypatch.setattr(dist, "_many", lambda: True)
    with pytest.raises(dist.LostProcessError, match=r"is gone \(Connection reset by peer\).*--max-restarts"):
        with dist.losses_told():
            raise RuntimeError(gloo)
    with pytest.raises(RuntimeError, match="shape"), dist.losses_told():
        raise RuntimeError("a shape is wrong")


def test_unknown_device() -> None:
    with pytest.raises(ValueError, match="--device must be auto, cpu or cuda, got 'tpu'"):
        dist.start("tpu")


def test_rank_zero_speaks_and_the_others_warn(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("prismatic.somewhere")
    root = logging.getLogger("prismatic")
    before = (list(root.handlers), root.level, root.propagate)
    try:
        for rank in (0, 3):
            dist.setup_logging(dist.World(rank, rank, 4, torch.device("cpu"), "gloo"))
            logger.info(f"information from {rank}")
            logger.warning(f"a warning from {rank}")
    finally:
        root.handlers, root.level, root.propagate = before[0], before[1], before[2]
    lines = capsys.readouterr().err.splitlines()
    assert [line[10:] for line in lines] == [
        "information from 0",
        "warning: a warning from 0",
        "[rank 3] warning: a warning from 3",
    ]
