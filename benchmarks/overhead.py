"""coded_map against Lithops' own map of the same k tasks, healthy and with stragglers.

Ratios of medians, runs interleaved, a fresh executor for every run on both sides; both fork their
workers (Lithops localhost, version 1) and Lithops has its default of one slot per core.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import lithops
import numpy as np

import polarmap
from benchmarks import is_quick
from polarmap import Fault, FaultyExecutor

K, N = 24, 32
TASK_SECONDS = 0.2
SLEEP_SECONDS = 20.0


def work_for(seconds: float) -> Callable[[Any], Any]:
    """A linear f that computes for about `seconds` on one core, in small steps."""
    grain = np.arange(20_000.0)

    def spin(turns: int) -> None:
        for _ in range(turns):
            np.sqrt(grain).sum()

    began = time.perf_counter()
    spin(2_000)
    turns = int(2_000 * seconds / (time.perf_counter() - began))

    def f(block: Any) -> Any:
        spin(turns)
        return block.sum(axis=0)

    return f


def plain(f: Callable[[Any], Any], blocks: list[Any]) -> float:
    """Seconds of Lithops' map, start of the executor included."""
    began = time.perf_counter()
    config = {
        "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.02},
        "localhost": {"version": 1, "runtime": sys.executable},
    }
    with lithops.FunctionExecutor(config=config, log_level=None) as functions:
        futures = functions.map(lambda block: f(block), [{"block": block} for block in blocks])
        functions.get_result(futures, show_progressbar=False, wait_dur_sec=0.02)
    return time.perf_counter() - began


def coded(f: Callable[[Any], Any], blocks: list[Any], faults: dict[int, Fault] | None = None) -> Any:
    """Seconds of coded_map, the same way, and its report."""
    began = time.perf_counter()
    y = polarmap.coded_map(f, blocks, workers=N, executor=FaultyExecutor("localhost", faults or {}))
    return time.perf_counter() - began, y.report


def main() -> None:
    runs = 3 if is_quick(__doc__) else 9
    blocks = list(np.random.default_rng(0).standard_normal((K, 64, 64)))
    f = work_for(TASK_SECONDS)
    plain(f, blocks)
    coded(f, blocks)
    times: dict[str, list[float]] = {"plain map": [], "coded_map": []}
    for _ in range(runs):
        times["plain map"].append(plain(f, blocks))
        times["coded_map"].append(coded(f, blocks)[0])
    base = statistics.median(times["plain map"])
    print(f"{K} tasks of {TASK_SECONDS} s of computing, {N} coded, no stragglers, {runs} runs each")
    print(f"{'':12} {'median s':>9} {'min':>6} {'max':>6} {'ratio':>6}   target")
    for name, seconds in times.items():
        ratio = statistics.median(seconds) / base
        target = "<= 1.15" if name == "coded_map" else ""
        row = f"{statistics.median(seconds):9.2f} {min(seconds):6.2f} {max(seconds):6.2f} {ratio:6.2f}"
        print(f"{name:12} {row}   {target}")
    print(f"\n2 of {N} tasks sleep {SLEEP_SECONDS:g} s: seconds from the call to the results")
    for _ in range(2):
        seconds, report = coded(
            f, blocks, {3: Fault("sleep", SLEEP_SECONDS), 9: Fault("sleep", SLEEP_SECONDS)}
        )
        arrived = sorted(task.arrived for task in report.tasks if task.arrived is not None)
        print(f"results {seconds:6.2f}   k-th arrival {arrived[K - 1]:6.2f}   (healthy plain map {base:.2f})")


if __name__ == "__main__":
    main()
