"""Time coded_map against Lithops' own map of the same k tasks, without and with stragglers.

Every run has a new executor on both sides. Both fork their workers (Lithops localhost, version 1), and
Lithops has its default of one slot per core. The result is rows of the table of `steps`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lithops
import numpy as np

import polarmap
from benchmarks import Row, time_call, time_in_turns, to_milliseconds
from polarmap.testing import Fault, FaultyExecutor

K, N = 24, 32
TASK_SECONDS = 0.2  # Seconds that a task computes.
SLEEPING_FAULTS = {task: Fault("sleep", 20.0) for task in (3, 9)}
CONFIG = {
    "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.02},
    "localhost": {"version": 1, "runtime": sys.executable},
}
SPIN_VECTOR = np.arange(20_000.0)


def spin(n_rounds: int) -> None:
    """Compute for `n_rounds` short rounds."""
    for _ in range(n_rounds):
        np.sqrt(SPIN_VECTOR).sum()


def map_with_lithops(f: Callable[[Any], Any], blocks: list[Any]) -> None:
    """Map with Lithops, including the start of the executor."""
    with lithops.FunctionExecutor(config=CONFIG, log_level=None) as function_executor:
        futures = function_executor.map(lambda block: f(block), [{"block": block} for block in blocks])
        function_executor.get_result(futures, show_progressbar=False, wait_dur_sec=0.02)


def map_with_polarmap(f: Callable[[Any], Any], blocks: list[Any], faults: dict[int, Fault]) -> None:
    polarmap.coded_map(f, blocks, tasks=N, executor=FaultyExecutor("localhost", faults))


def measure_overhead(n_turns: int) -> Iterator[Row]:
    """Yield rows that compare coded maps with the same plain map of Lithops."""
    blocks = list(np.random.default_rng(0).standard_normal((K, 64, 64)))
    n_rounds = int(2_000 * TASK_SECONDS / time_call(partial(spin, 2_000)))

    def f(block: Any) -> Any:
        spin(n_rounds)
        return block.sum(axis=0)

    actions = [
        partial(map_with_lithops, f, blocks),
        *(partial(map_with_polarmap, f, blocks, faults) for faults in ({}, SLEEPING_FAULTS)),
    ]
    lithops_times, healthy_times, sleeping_times = map(to_milliseconds, time_in_turns(actions, n_turns))
    label = f"{K} tasks of {TASK_SECONDS} s on local Lithops"
    yield Row(label, healthy_times, "Lithops' map", lithops_times, "1.15")
    yield Row(f"{label}, {len(SLEEPING_FAULTS)} of {N} sleep", sleeping_times, "Lithops' map", lithops_times)
