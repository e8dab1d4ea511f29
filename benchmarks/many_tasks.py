"""Measure the time and memory of the driver for maps of many tasks on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

import polarmap
from benchmarks import parse_quick_flag, print_table
from benchmarks.memory import peak_mib


def measure_maps(task_counts: tuple[int, ...], library_mib: float) -> Iterator[tuple[object, ...]]:
    """Yield a row for each number of tasks, in ascending order; memory is the peak so far."""
    for n in task_counts:
        k = 3 * n // 4
        A = np.ones((k, 4, 16))
        for _ in range(2):  # The first map also constructs the code.
            started_at, cpu_seconds = time.perf_counter(), time.process_time()
            polarmap.coded_map(lambda block: block @ np.ones(16), list(A), tasks=n)
            seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_seconds
        yield n, k, seconds, cpu_seconds, 1e3 * cpu_seconds / n, peak_mib() - library_mib


def main() -> None:
    task_counts = (30, 100) if parse_quick_flag(__doc__) else (100, 300, 1_000)
    polarmap.coded_map(lambda block: block @ np.ones(16), list(np.ones((6, 4, 16))), tasks=8)
    library_mib = peak_mib()
    print(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    header = ("tasks", "blocks", "seconds", "driver CPU s", "CPU ms / task", "peak MiB")
    print_table(header, measure_maps(task_counts, library_mib))


if __name__ == "__main__":
    main()
