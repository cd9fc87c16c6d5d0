"""A process that hangs, crashes or runs out of luck costs one task, and its neighbours do not notice."""

from __future__ import annotations

import os
import time

import pytest

from prismatic.webvid.pool import Failure, Pool

# `eval` runs in the processes: it is the one function that does anything and that any process can import.
CRASH = "__import__('os').kill(__import__('os').getpid(), 11)"
HANG = "__import__('time').sleep(600)"
EXIT = "__import__('os')._exit(3)"


def test_results_come_in_order_whatever_happens() -> None:
    tasks = ["1", CRASH, "2", HANG, "int('x')", EXIT, "3", "open('/nowhere/x')", *[f"{i} * 2" for i in range(20)]]
    started = time.monotonic()
    with Pool(eval, 2, timeout=3) as pool:
        results = list(pool.imap(tasks))
    assert time.monotonic() - started < 60
    reasons = {i: r.reason for i, r in enumerate(results) if isinstance(r, Failure)}
    assert set(reasons) == {1, 3, 4, 5, 7}
    assert "died of signal 11 (SIGSEGV)" in reasons[1]
    assert "not done within 3 s" in reasons[3]
    assert "invalid literal" in reasons[4]
    assert "ended with code 3" in reasons[5]
    assert "No such file" in reasons[7]
    assert [r for r in results if not isinstance(r, Failure)] == [1, 2, 3, *range(0, 40, 2)]


def test_a_bug_is_raised_and_processes_end() -> None:
    pool = Pool(eval, 2, timeout=30)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(pool.imap(["1", "1 // 0", "2"]))
    assert not pool._workers


def test_a_process_that_was_ended_between_tasks_is_no_fault_of_the_next() -> None:
    with Pool(eval, 1, timeout=30) as pool:
        assert list(pool.imap(["1"])) == [1]
        os.kill(pool._workers[0].process.pid or 0, 9)
        pool._workers[0].process.join()
        assert list(pool.imap(["2", "3"])) == [2, 3]


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def tasks() -> object:
        for i in range(100):
            taken.append(i)
            yield str(i)

    with Pool(eval, 1, timeout=30) as pool:
        results = pool.imap(tasks())  # type: ignore[arg-type]
        assert next(results) == 0
        assert len(taken) < 10
        results.close()
