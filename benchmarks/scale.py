"""Measure what 1,000 to 100,000 tasks cost the driver: processor time, peak memory, and stored blocks.

python -m benchmarks.scale [--quick] [subject ...]

Each number is the median of several rounds, with the 90th percentile in brackets. Each map runs on the
virtual clock of `ReplayExecutor`, so that only the driver works, in a process of its own. f adds up the rows
of a block of 4 x 16 numbers, and 5 % of the tasks never return.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

import polarmap
from benchmarks import format_median_and_p90, print_table, time_call
from benchmarks.memory import peak_mib
from polarmap.codes.polar import get_design_erasure_fraction
from polarmap.planning import arrivals_needed
from polarmap.testing import ReplayExecutor

BLOCK_SHAPE = 4, 16
LOST_FRACTION = 0.05
N_ROUNDS = 3
TASK_COUNTS = 1_000, 2_000, 4_000, 8_000, 20_000, 50_000, 100_000
# Targets in seconds of processor time and in MB, by kind of numbers and number of tasks.
TARGETS = {
    ("float64", 10_000): "250 MB",
    ("float64", 20_000): "2.5 s",
    ("float64", 50_000): "8 s, 600 MB",
    ("float64", 100_000): "20 s, 1 GB",
    ("int64", 50_000): "6 s",
    ("int64", 100_000): "13 s, 1 GB",
}


def sum_rows(block: np.ndarray) -> Any:
    """Return the sum of the rows of a block, (16,)."""
    return block.sum(axis=0)


def run_map(n: int, dtype: str) -> tuple[float, float, float, int]:
    """Run one map, and return its processor seconds, seconds, peak MiB and number of needed results."""
    rng, k = np.random.default_rng(n), 3 * n // 4
    data = rng.integers(-1000, 1000, (k, *BLOCK_SHAPE)).astype(dtype)
    lost = rng.choice(n, int(LOST_FRACTION * n), replace=False).tolist()
    executor = ReplayExecutor(dict.fromkeys(lost, math.inf))
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    result = polarmap.coded_map(sum_rows, list(data), tasks=n, executor=executor, progress=False)
    cpu_seconds, seconds = time.process_time() - cpu_started_at, time.perf_counter() - started_at
    difference = np.stack(list(result)) - data.sum(axis=1)
    assert np.abs(difference).max() <= (1e-7 if dtype == "float64" else 0)
    return cpu_seconds, seconds, peak_mib(), result.report.needed


def measure_maps(dtype: str, task_counts: tuple[int, ...], n_rounds: int) -> Iterator[tuple[object, ...]]:
    """Yield one row per number of tasks, with the growth of processor time per doubling."""
    previous: tuple[int, float] | None = None
    for n in task_counts:
        runs = [call_in_new_process(run_map, n, dtype) for _ in range(n_rounds)]
        cpu_seconds, seconds, mib, needed = zip(*runs)
        growth: object = "-"
        if previous is not None:
            growth = (median(cpu_seconds) / previous[1]) ** (1 / math.log2(n / previous[0]))
        previous = n, median(cpu_seconds)
        target = TARGETS.get((dtype, n), "")
        yield (
            f"{dtype}, {n:,} tasks",
            format_median_and_p90(cpu_seconds),
            format_median_and_p90(seconds),
            f"{median(mib):.0f}",
            int(median(needed)) - 3 * n // 4,
            growth,
            target,
        )


def call_in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a new process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure_storage(n: int) -> tuple[float, float, float]:
    """Encode n stored blocks; return the seconds to encode them, open the array and read it."""
    k = 3 * n // 4
    data = np.arange(16.0 * k).reshape(k, 16)
    with tempfile.TemporaryDirectory() as folder:
        encode_seconds = time_call(lambda: polarmap.encode(data, blocks=k, tasks=n, name="A", storage=folder))
        open_seconds = time_call(lambda: polarmap.open_coded("A", storage=folder))
        stored = polarmap.open_coded("A", storage=folder)
        read_seconds = time_call(lambda: stored[:])
        assert np.array_equal(stored[:], data)
    return encode_seconds, open_seconds, read_seconds


def maps_of_floats(task_counts: tuple[int, ...], n_rounds: int) -> None:
    """Print the table of maps of floats."""
    print_table(MAP_HEADER, measure_maps("float64", task_counts, n_rounds))


def maps_of_integers(task_counts: tuple[int, ...], n_rounds: int) -> None:
    """Print the table of maps of integers."""
    print_table(MAP_HEADER, measure_maps("int64", task_counts, n_rounds))


def stored_blocks(task_counts: tuple[int, ...], n_rounds: int) -> None:
    """Print how long it takes to encode, open and read the largest number of stored blocks."""
    n = max(task_counts)
    rounds = zip(*(call_in_new_process(measure_storage, n) for _ in range(n_rounds)))
    times = [format_median_and_p90(seconds) for seconds in rounds]
    print_table(
        ("stored blocks", "encode s", "open s", "read s", "target"), [(f"{n:,} blocks", *times, "open: 1 s")]
    )


def results_beyond_k(task_counts: tuple[int, ...], n_rounds: int) -> None:
    """Print how many results beyond k integers need, beside the frozen sets of channel polarization."""
    rows = []
    for n, k in ((256, 128), (256, 192), (512, 384)):
        erasure = get_design_erasure_fraction("optimal") * (n - k) / n
        means = []
        for design_erasure in (None, erasure):
            needed = arrivals_needed(n, k, "integers", erasure=design_erasure, n_trials=100 * n_rounds)
            means.append(float(needed.counts @ needed.probabilities) - k)
        rows.append((f"integers, ({n}, {k})", *means, means[0] / means[1], "less than half"))
    print_table(("results beyond k, mean", "low weight", "polarization", "ratio", "target"), rows)


MAP_HEADER = ("maps", "driver CPU s", "seconds", "peak MiB", "needed - k", "x per doubling", "target")
SUBJECTS = {one.__name__: one for one in (maps_of_floats, maps_of_integers, stored_blocks, results_beyond_k)}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="measure smaller maps, once")
    parser.add_argument("--tasks", type=int, nargs="+", default=TASK_COUNTS, help="numbers of tasks")
    parser.add_argument("subjects", nargs="*", metavar="subject", help=f"of {', '.join(SUBJECTS)}; all")
    arguments = parser.parse_args()
    task_counts, n_rounds = ((100, 300), 1) if arguments.quick else (tuple(arguments.tasks), N_ROUNDS)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for subject in arguments.subjects or SUBJECTS:
        SUBJECTS[subject](task_counts, n_rounds)


if __name__ == "__main__":
    main()
