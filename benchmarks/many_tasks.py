"""What a driver spends on many tasks: maps on this machine, and looks at the marks of tasks in a bucket."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lithops
import numpy as np

import polarmap
from benchmarks import ROOT, is_quick, show
from benchmarks.memory import peak
from polarmap.clouds.prices import STORAGE, listing_requests

sys.path.append(str(ROOT / "tests"))
from tests.servers import S3Server

LOOKS = 9
INTERVAL = 0.3  # seconds between looks, as config/aws_lambda.yaml says


def maps(sizes: tuple[int, ...], libraries: float) -> Iterator[tuple[object, ...]]:
    """One row per number of tasks, ascending: memory is the most that was held so far."""
    for n in sizes:
        k = 3 * n // 4
        A = np.ones((k, 4, 16))
        for _ in range(2):  # the first has the code to make
            began, used = time.perf_counter(), time.process_time()
            polarmap.coded_map(lambda block: block @ np.ones(16), list(A), workers=n)
            seconds, used = time.perf_counter() - began, time.process_time() - used
        yield n, k, seconds, used, 1e3 * used / n, peak() - libraries


@contextmanager
def bucket(folder: Path) -> Iterator[Any]:
    """Lithops' storage in a bucket of SeaweedFS."""
    server = S3Server(folder)
    try:
        server.start()
        config = server.config(folder / "lithops.yaml")
        with lithops.FunctionExecutor(config_file=str(config), log_level=None) as functions:
            yield functions.internal_storage
    finally:
        server.close()


def put_marks(storage: Any, tasks: range) -> None:
    """What Lithops' workers leave of each task: a mark when it begins, and one when it has ended."""
    keys = [
        f"lithops.jobs/x-0-M000/{task:05d}/{name}" for task in tasks for name in ("0.init", "status.json")
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.storage.put_object(storage.bucket, key, b"{}"), keys))


def looks(sizes: tuple[int, ...], storage: Any) -> Iterator[tuple[object, ...]]:
    """One row per number of tasks, ascending."""
    requests = 0

    def count(**_: Any) -> None:
        nonlocal requests
        requests += 1

    storage.storage.get_client().meta.events.register("before-send.s3.ListObjectsV2", count)
    put, price = 0, STORAGE["aws_s3"][0]
    for n in sizes:
        put_marks(storage, range(put, n))
        put, requests, seconds, used = n, 0, [], time.process_time()
        for _ in range(LOOKS):
            began = time.perf_counter()
            _, done = storage.get_job_status("x-0", ["M000"])
            seconds.append(time.perf_counter() - began)
            assert len(done) == n
        used = (time.process_time() - used) / LOOKS
        assert requests == LOOKS * listing_requests(n)
        tracemalloc.start()
        storage.get_job_status("x-0", ["M000"])
        held = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        look = price * listing_requests(n)
        yield n, 2 * n, requests // LOOKS, statistics.median(seconds), used, held, look, look * 60 / INTERVAL


def main() -> None:
    sizes = (30, 100) if is_quick(__doc__) else (100, 300, 1_000)
    polarmap.coded_map(lambda block: block @ np.ones(16), list(np.ones((6, 4, 16))), workers=8)
    libraries = peak()
    print(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    header = ("tasks", "blocks", "s", "driver CPU s", "CPU ms a task", "MiB")
    show(header, maps(sizes, libraries))
    print("\nA look at the marks of as many tasks, in a bucket of SeaweedFS; dollars are those of S3")
    header = ("tasks", "objects", "requests", "s", "CPU s", "MiB", "$ a look", "$ a minute")
    with tempfile.TemporaryDirectory() as folder, bucket(Path(folder)) as storage:
        show(header, looks((*sizes, 2 * sizes[-1]), storage))


if __name__ == "__main__":
    main()
