"""Coded arrays: encoding against plain upload, iterating against plain Lithops maps, memory of encoding.

python -m benchmarks.coded_arrays [--quick] [--config LITHOPS_YAML]

Data lies in a folder, or in the storage of the configuration, whose workers then run the maps. All
ratios are of medians of runs in turns on the same data.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lithops
import numpy as np

import polarmap
from benchmarks import interleaved, show
from polarmap.arrays.fetching import TRANSFERS
from polarmap.arrays.stores import open_store

K, N, COLUMNS = 24, 32, 5_000
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer")
    parser.add_argument("--config", help="a Lithops configuration whose storage and workers are used")
    parser.add_argument("--rss", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rss:
        print_peak(options.rss)
        return
    with tempfile.TemporaryDirectory() as folder:
        storage = options.config or folder
        rows = 2_400 if options.quick else 24_000
        A = np.random.default_rng(0).standard_normal((rows, COLUMNS))
        encoding(A, storage, 2 if options.quick else 3)
        iterating(A, storage, options.config, 4 if options.quick else 20)
        memory(folder, 1 if options.quick else 4)


def encoding(A: Any, storage: str, repeats: int) -> None:
    """encode() against putting as many bytes, in as many objects by as many threads."""
    store = open_store(storage)
    sizes = part_sizes(A, storage)
    noise = np.random.default_rng(1).bytes(max(sizes))

    def upload(sizes: list[int]) -> None:
        with ThreadPoolExecutor(TRANSFERS) as pool:
            for done in [pool.submit(store.put, f"plain/{i}", noise[:size]) for i, size in enumerate(sizes)]:
                done.result()

    def encode() -> None:
        polarmap.encode(A, blocks=K, workers=N, name="bench", storage=storage, overwrite=True)

    data = sizes[: len(sizes) * K // N]
    seconds = interleaved([encode, lambda: upload(sizes), lambda: upload(data)], repeats)
    print(f"\n{A.nbytes / MIB:.0f} MiB of float64, ({N}, {K}), in {store.name}")
    names = ("encode", "upload of data + parity", "upload of the data")
    show(
        ("", "seconds", "MiB/s of data", "encode takes"),
        [(n, s, A.nbytes / MIB / s, f"{seconds[0] / s:.2f} x") for n, s in zip(names, seconds)],
    )
    store.delete(store.keys("plain/"))


def part_sizes(A: Any, storage: str) -> list[int]:
    """Of all objects of the encoded array, data first."""
    coded = polarmap.encode(A, blocks=K, workers=N, name="bench", storage=storage, overwrite=True)
    return [part.size for index in range(N) for part in coded.stored(index)]


def iterating(A: Any, storage: str, config: str | None, iterations: int) -> None:
    """One product per iteration: stored array, array in memory, plain map of stored blocks."""
    coded, store = polarmap.open_coded("bench", storage), open_store(storage)
    keys = [f"plain/{index}" for index in range(K)]
    for key, block in zip(keys, np.split(A, K)):
        store.put(key, block.tobytes())
    x = np.ones(COLUMNS)
    actions: list[Callable[[], object]] = [
        lambda: polarmap.coded_map(lambda block: block @ x, coded, executor=config, verify=False),
        lambda: polarmap.coded_map(
            lambda block: block @ x, A, blocks=K, workers=N, executor=config, verify=False
        ),
        lambda: plain(keys, x, storage, config),
    ]
    seconds = interleaved(actions, iterations)
    block, results = A.nbytes / K, 8 * A.shape[0]
    moved = [(K * block, N * block), (N * block + results, N * block), (K * block, K * block)]
    names = ("coded_map, stored", "coded_map, from memory", "plain map, stored")
    print(f"\n{iterations} iterations of A @ x, {A.nbytes / MIB:.0f} MiB, medians")
    show(
        ("", "seconds", "of plain", "driver sends", "workers read"),
        [
            (
                name,
                s,
                f"{s / seconds[2]:.2f} x",
                f"{sent / MIB:.0f} MiB",
                f"{least / MIB:.0f}-{most / MIB:.0f} MiB",
            )
            for name, s, sent, (least, most) in zip(names, seconds, (0, N * block, 0), moved)
        ],
    )
    print(f"results: {results / 1e6:.2f} MB per iteration; read: until enough have arrived, at most by all")
    store.delete(keys)
    coded.delete()


def plain(keys: list[str], x: Any, storage: str, config: str | None) -> Any:
    """Lithops' own map over stored blocks, on a fresh executor as coded_map has one."""

    def from_bucket(key: str, storage: Any) -> Any:
        return np.frombuffer(storage.get_object(storage.bucket, key)).reshape(-1, len(x)) @ x

    def from_folder(key: str) -> Any:
        return np.fromfile(f"{storage}/{key}").reshape(-1, len(x)) @ x

    local = {
        "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.02},
        "localhost": {"version": 1, "runtime": sys.executable},
    }
    options: dict[str, Any] = (
        {"config_file": config, "runtime": sys.executable} if config else {"config": local}
    )
    with lithops.FunctionExecutor(log_level=None, **options) as functions:
        futures = functions.map(from_bucket if config else from_folder, keys)
        return np.concatenate(functions.get_result(futures, show_progressbar=False, wait_dur_sec=0.02))


def memory(folder: str, gib: int) -> None:
    """The most memory that encoding a mapped file holds, in a process of its own."""
    rows = (gib << 30) // (8 * COLUMNS)
    A = np.memmap(f"{folder}/raw", "f8", "w+", shape=(rows, COLUMNS))
    A[:: rows // 100] = 1.0
    del A
    command = [sys.executable, "-m", "benchmarks.coded_arrays", "--rss", folder]
    began = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"\nencoding a memmap of {gib} GiB, default memory=256 MiB, {time.perf_counter() - began:.0f} s:")
    print(f"{run.stdout.strip()} (<= 512)")


def print_peak(folder: str) -> None:
    A = np.memmap(f"{folder}/raw", "f8", "r").reshape(-1, COLUMNS)
    before = peak()
    polarmap.encode(A, blocks=K, workers=N, name="memory", storage=folder)
    print(f"peak of the process {peak():.0f} MiB, before encoding {before:.0f}")


def peak() -> float:
    """MiB that this process has held at most; getrusage would count its parent's from before it began."""
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
