"""coded_map against Lithops' own map of the same k tasks, healthy and with stragglers.

Ratios of medians, runs in turns, a fresh executor for every run on both sides; both fork their workers
(Lithops localhost, version 1) and Lithops has its default of one slot per core. Without stragglers a coded
map is to take at most 1.15 times as long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import lithops
import numpy as np

import polarmap
from benchmarks import interleaved, is_quick, seconds_of, show
from polarmap import Fault, FaultyExecutor

K, N = 24, 32
TASK_SECONDS = 0.2
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


def main() -> None:
    runs = 3 if is_quick(__doc__) else 9
    blocks = list(np.random.default_rng(0).standard_normal((K, 64, 64)))
    turns = int(2_000 * TASK_SECONDS / seconds_of(lambda: spin(2_000)))

    def f(block: Any) -> Any:
        spin(turns)
        return block.sum(axis=0)

    def coded(faults: dict[int, Fault]) -> None:
        polarmap.coded_map(f, blocks, workers=N, executor=FaultyExecutor("localhost", faults))

    taken = interleaved([lambda: plain(f, blocks), lambda: coded({}), lambda: coded(LATE)], runs)
    print(f"{K} tasks of {TASK_SECONDS} s of computing, {N} coded, medians of {runs} runs")
    names = ("plain map", "coded_map", f"coded_map, {len(LATE)} sleep 20 s")
    show(("", "seconds", "to plain"), [(name, one, one / taken[0]) for name, one in zip(names, taken)])


if __name__ == "__main__":
    main()
