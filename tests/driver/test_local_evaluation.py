"""Tests of f evaluated on the driver during a map: how long the map waits, and how it reports errors."""

from __future__ import annotations

import threading

from polarmap.driver.local_evaluation import LocalEvaluation


def test_waiting_for_an_evaluation_ends_after_its_timeout() -> None:
    gate = threading.Event()

    def f(block: int) -> tuple[float, int]:
        assert gate.wait(60.0)
        return 2.0, block

    run = LocalEvaluation(f, lambda: 3)
    assert run.wait_for_result_arrays(0.0) is None
    assert run.is_running
    gate.set()
    leaves = run.wait_for_result_arrays(60.0)
    assert leaves is not None
    assert [leaf.item() for leaf in leaves] == [2.0, 3]
    assert not run.is_running


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_of_f_is_not_a_result() -> None:
    def f(block: int) -> None:
        raise SilentError

    run = LocalEvaluation(f, lambda: 0)
    assert run.wait_for_result_arrays(60.0) is None
    assert not run.is_running
    assert run.error_text == "SilentError: <its __str__ raised>"
