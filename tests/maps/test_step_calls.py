"""Count the Python calls of a warm step, on which the speed of iterations depends.

The calls are counted in a new process: the driver looks at the modules of the user, and pytest has many.
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from benchmarks import ROOT, count_python_calls
from polarmap import CodedOperator, Pool, coded_map
from polarmap.testing import ReplayExecutor

# The numbers of calls when this test was written. A change that needs more than 5 % more calls must say why,
# and change the number here.
DRIVER_CALLS = 2_363
STEP_CALLS = 1_512
MAX_GROWTH = 1.05
MAX_SECONDS = 90  # The time within which a step must be quiet once.
TIMEOUT_SECONDS = 200

A, X = np.random.default_rng(1).standard_normal((96, 1000)), np.ones(1000)


def multiply_block(block: np.ndarray) -> np.ndarray:
    return block @ X


def count_driver_calls() -> int:
    """Return the calls of a map on a virtual clock, which are the same in each run."""
    executor = ReplayExecutor()

    def run_map() -> None:
        coded_map(multiply_block, A, blocks=24, tasks=32, executor=executor, progress=False)

    run_map()  # The first map verifies that f is linear.
    run_map()
    return count_python_calls(run_map)


def count_step_calls() -> int:
    """Return the smallest number of calls of a product on a pool.

    On a busy machine, results arrive one by one, and the driver wakes up more often. So steps are made until
    one needs no more calls than it may.
    """
    end = time.monotonic() + MAX_SECONDS
    with Pool() as pool, CodedOperator(A, blocks=24, tasks=32, executor=pool) as operator:
        for _ in range(10):
            operator @ X
        n_calls = count_python_calls(lambda: operator @ X)
        while n_calls > MAX_GROWTH * STEP_CALLS and time.monotonic() < end:
            n_calls = min(n_calls, count_python_calls(lambda: operator @ X))
        return n_calls


def test_warm_step_needs_no_more_calls() -> None:
    command = [sys.executable, "-m", "tests.maps.test_step_calls"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    driver_calls, step_calls = map(int, run.stdout.split())
    assert driver_calls <= MAX_GROWTH * DRIVER_CALLS
    assert step_calls <= MAX_GROWTH * STEP_CALLS


if __name__ == "__main__":
    print(count_driver_calls(), count_step_calls())
