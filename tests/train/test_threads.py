"""Threads beside the training: results and errors come back, and there are as many as were ever at work at once."""

from __future__ import annotations

import os
import threading

import pytest

from prismatic.train.threads import in_thread


def test_threads_are_used_again() -> None:
    seen = {in_thread(threading.get_ident).result(5) for _ in range(50)}
    assert len(seen) == 1
    together = threading.Barrier(3)
    for _ in range(5):
        three = [in_thread(lambda: together.wait(5) >= 0 and threading.get_ident()) for _ in range(3)]
        seen |= {result.result(5) for result in three}
    assert len(seen) == 3


def test_an_error_is_told_to_whoever_asks_and_costs_no_thread() -> None:
    before = in_thread(threading.get_ident).result(5)
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0).result(5)
    assert in_thread(threading.get_ident).result(5) == before


def test_a_forked_process_has_threads_of_its_own() -> None:
    in_thread(threading.get_ident).result(5)
    child = os.fork()
    if not child:
        os._exit(0 if in_thread(os.getpid).result(5) == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0
