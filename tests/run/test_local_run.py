"""f on the driver beside a map: how long it is waited for, and what is said of what it raises."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from coded_maps import losing

from polarmap import coded_map
from polarmap.run.local_run import LocalRun

FLOATS = np.random.default_rng(0).standard_normal((48, 3))


def test_a_result_is_waited_for_as_long_as_is_said() -> None:
    gate = threading.Event()

    def f(block: int) -> tuple[float, int]:
        assert gate.wait(60.0)
        return 2.0, block

    run = LocalRun(f, lambda: 3)
    assert run.leaves_within(0.0) is None
    assert run.is_running
    gate.set()
    leaves = run.leaves_within(60.0)
    assert leaves is not None
    assert [leaf.item() for leaf in leaves] == [2.0, 3]
    assert not run.is_running


def test_what_f_raises_is_no_result() -> None:
    run = LocalRun(lambda block: 1 / block, lambda: 0)
    assert run.leaves_within(60.0) is None
    assert not run.is_running
    assert run.words == "ZeroDivisionError: division by zero"


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_without_words_is_told_of_all_the_same() -> None:
    here = threading.main_thread()

    def f(block: np.ndarray) -> np.ndarray:
        if threading.current_thread() is not here:
            raise SilentError
        return block

    options = {"blocks": 24, "workers": 32, "executor": losing(*range(24, 32)), "verify": True}
    with pytest.warns(RuntimeWarning, match="could not be verified.*SilentError: <its __str__ raised>"):
        coded_map(f, FLOATS, **options)
