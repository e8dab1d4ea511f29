"""coded_map beside Lithops' own map of the same k tasks, healthy and with stragglers, as rows of `steps`.

A fresh executor for every run on both sides; both fork their workers (Lithops localhost, version 1), and
Lithops has its default of one slot per core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lithops
import numpy as np

import polarmap
from benchmarks import Row, in_turns, milliseconds, seconds_of
from polarmap.testing import Fault, FaultyExecutor

K, N = 24, 32
TASK_SECONDS = 0.2  # of computing
LATE = {task: Fault("sleep", 20.0) for task in (3, 9)}
CONFIG = {
    "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.02},
    "localhost": {"version": 1, "runtime": sys.executable},
}
GRAIN = np.arange(20_000.0)


def spin(turns: int) -> None:
    """Compute in small steps."""
    for _ in range(turns):
        np.sqrt(GRAIN).sum()


def plain(f: Callable[[Any], Any], blocks: list[Any]) -> None:
    """Lithops' map, start of the executor included."""
    with lithops.FunctionExecutor(config=CONFIG, log_level=None) as functions:
        futures = functions.map(lambda block: f(block), [{"block": block} for block in blocks])
        functions.get_result(futures, show_progressbar=False, wait_dur_sec=0.02)


def coded(f: Callable[[Any], Any], blocks: list[Any], faults: dict[int, Fault]) -> None:
    polarmap.coded_map(f, blocks, tasks=N, executor=FaultyExecutor("localhost", faults))


def rows(repeats: int) -> Iterator[Row]:
    """Both beside the same plain map."""
    blocks = list(np.random.default_rng(0).standard_normal((K, 64, 64)))
    turns = int(2_000 * TASK_SECONDS / seconds_of(partial(spin, 2_000)))

    def f(block: Any) -> Any:
        spin(turns)
        return block.sum(axis=0)

    actions = [partial(plain, f, blocks), *(partial(coded, f, blocks, faults) for faults in ({}, LATE))]
    theirs, healthy, late = map(milliseconds, in_turns(actions, repeats))
    what = f"{K} tasks of {TASK_SECONDS} s on Lithops here"
    yield Row(what, healthy, "Lithops' map", theirs, "1.15")
    yield Row(f"{what}, {len(LATE)} of {N} sleep", late, "Lithops' map", theirs)
