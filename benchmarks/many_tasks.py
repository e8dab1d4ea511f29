"""What a driver spends on maps of many tasks on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

import polarmap
from benchmarks import is_quick, show
from benchmarks.memory import peak


def maps(sizes: tuple[int, ...], libraries: float) -> Iterator[tuple[object, ...]]:
    """One row per number of tasks, ascending: memory is the most that was held so far."""
    for n in sizes:
        k = 3 * n // 4
        A = np.ones((k, 4, 16))
        for _ in range(2):  # the first has the code to make
            began, used = time.perf_counter(), time.process_time()
            polarmap.coded_map(lambda block: block @ np.ones(16), list(A), tasks=n)
            seconds, used = time.perf_counter() - began, time.process_time() - used
        yield n, k, seconds, used, 1e3 * used / n, peak() - libraries


def main() -> None:
    sizes = (30, 100) if is_quick(__doc__) else (100, 300, 1_000)
    polarmap.coded_map(lambda block: block @ np.ones(16), list(np.ones((6, 4, 16))), tasks=8)
    libraries = peak()
    print(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    header = ("tasks", "blocks", "s", "driver CPU s", "CPU ms a task", "MiB")
    show(header, maps(sizes, libraries))


if __name__ == "__main__":
    main()
