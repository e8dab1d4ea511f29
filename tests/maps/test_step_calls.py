"""Count the Python calls of a warm step, which the speed of iterations depends on: no machine is too slow."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap import CodedOperator, Pool, coded_map
from polarmap.testing import ReplayExecutor

# The numbers of calls when this test was written. A change that needs more than 5 % more calls must say why,
# and change the number here.
DRIVER_CALLS = 2_363
STEP_CALLS = 1_512
MAX_GROWTH = 1.05

A, X = np.random.default_rng(1).standard_normal((96, 1000)), np.ones(1000)


def multiply_block(block: np.ndarray) -> np.ndarray:
    return block @ X


def count_python_calls(action: Callable[[], object]) -> int:
    """Return how many Python functions an action calls, in all threads of this process."""
    n_calls = 0

    def count_call(frame: Any, event: str, argument: Any) -> None:
        nonlocal n_calls
        n_calls += event == "call"

    threading.setprofile(count_call)
    sys.setprofile(count_call)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return n_calls


def test_driver_needs_no_more_calls_for_a_known_function() -> None:
    executor = ReplayExecutor()  # Its virtual clock makes the number the same in each run.

    def run_map() -> None:
        coded_map(multiply_block, A, blocks=24, tasks=32, executor=executor, progress=False)

    run_map()  # The first map verifies that f is linear.
    run_map()
    assert count_python_calls(run_map) <= MAX_GROWTH * DRIVER_CALLS


def test_step_on_a_pool_needs_no_more_calls() -> None:
    with Pool() as pool, CodedOperator(A, blocks=24, tasks=32, executor=pool) as operator:
        for _ in range(10):
            operator @ X
        # The number depends on how many results arrive together, so the smallest of many steps counts.
        assert min(count_python_calls(lambda: operator @ X) for _ in range(60)) <= MAX_GROWTH * STEP_CALLS
