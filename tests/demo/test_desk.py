"""The line before the model."""

from __future__ import annotations

import threading

import pytest
import torch

from prismatic.demo.desk import Desk, Job


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.close(5.0)


def _last(desk: Desk, job: Job) -> dict[str, object]:
    return list(desk.events(job))[-1]


def test_one_at_a_time_in_order(desk: Desk) -> None:
    inside, order = threading.Lock(), []

    def work(number: int):
        def run(job: Job) -> None:
            assert inside.acquire(blocking=False)
            order.append(number)
            job.tell(answer=number)
            inside.release()

        return run

    jobs = [desk.submit(work(number)) for number in range(20)]
    assert [_last(desk, job)["answer"] for job in jobs] == order == list(range(20))


def test_who_waits_is_told_how_many_are_before(desk: Desk) -> None:
    go = threading.Event()
    desk.submit(lambda job: go.wait(20))
    jobs = [desk.submit(lambda job: job.tell(answer="")) for _ in range(2)]
    events = desk.events(jobs[1])
    assert next(events) == {"waiting": 2}
    go.set()
    assert list(events)[-1] == {"answer": ""}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("the file is empty"), "the file is empty"),
        (torch.OutOfMemoryError("CUDA out of memory"), "lower the number of frames"),
        (KeyError("a bug of ours"), "inside the program"),
    ],
)
def test_what_fails_is_told_and_the_next_is_served(desk: Desk, error: Exception, said: str) -> None:
    def fail(job: Job) -> None:
        raise error

    assert said in _last(desk, desk.submit(fail))["error"]
    assert _last(desk, desk.submit(lambda job: job.tell(answer=1))) == {"answer": 1}


def test_stopped_while_waiting(desk: Desk) -> None:
    go = threading.Event()
    desk.submit(lambda job: go.wait(20))
    job = desk.submit(lambda job: pytest.fail("it was to be stopped"))
    job.stop.set()
    go.set()
    assert "before it began" in _last(desk, job)["error"]


def test_close_stops_what_runs_and_says_whether_it_rests() -> None:
    desk = Desk()
    assert desk.close(0.1)
    for willing in (True, False):
        desk, begun, go = Desk(), threading.Event(), threading.Event()

        def work(job: Job, willing: bool = willing, begun: threading.Event = begun, go: threading.Event = go) -> None:
            begun.set()
            (job.stop if willing else go).wait(20)

        desk.submit(work)
        assert begun.wait(5)
        assert desk.close(5.0 if willing else 0.05) == willing
        go.set()
