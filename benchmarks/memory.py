"""Measure the peak memory of the driver, above its libraries: of one coded_map, and of encoding a file.

A map should stay below data + parity + 1.5 x results, encoding below twice its `memory=256 MiB`.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

import polarmap
from benchmarks import parse_quick_flag, print_table
from polarmap.codes.compute import block_matmul
from polarmap.testing import Fault, FaultyExecutor

MIB, COLUMNS = 1 << 20, 2_000


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB.

    getrusage would include the memory of the parent from before the fork.
    """
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def peak_mib_with_libraries() -> float:
    """Return the peak MiB after a map of almost no data that loads all libraries and the compiled loops."""
    saved_threshold, block_matmul.MIN_COMPILED_BYTES = block_matmul.MIN_COMPILED_BYTES, 0
    polarmap.coded_map(
        lambda block: block, np.ones((48, 2)), executor=polarmap.testing.ReplayExecutor({2: np.inf})
    )
    block_matmul.MIN_COMPILED_BYTES = saved_threshold
    polarmap.coded_map(lambda block: block, np.ones((48, 2)))
    return peak_mib()


def measure_map(n_rows: int) -> tuple[float, float, float]:
    """Return the MiB of libraries, of a map with a straggler and a dead worker, and the bound of the map."""
    library_mib, A = peak_mib_with_libraries(), np.ones((n_rows, COLUMNS))
    faulty_executor = FaultyExecutor(None, {2: Fault("sleep", 60), 5: Fault("kill")})
    mapped = polarmap.coded_map(lambda block: 2 * block, A, tasks=32, executor=faulty_executor)
    result_bytes = sum(result.nbytes for result in mapped)
    return library_mib, peak_mib() - library_mib, (A.nbytes * 4 / 3 + 1.5 * result_bytes) / MIB


def measure_encoding(n_mebibytes: int) -> tuple[float, float, float]:
    """Return the MiB of libraries, of encoding a file of `n_mebibytes` MiB, and the bound of the encoding.

    Libraries that encoding itself imports count as part of encoding.
    """
    with tempfile.TemporaryDirectory() as folder:
        n_rows = n_mebibytes * MIB // (8 * COLUMNS)
        np.lib.format.open_memmap(f"{folder}/A.npy", "w+", shape=(n_rows, COLUMNS))[:: n_rows // 100] = 1.0
        library_mib = peak_mib()
        polarmap.encode(f"{folder}/A.npy", blocks=24, tasks=32, name="A", storage=folder)
        return library_mib, peak_mib() - library_mib, 512


def main() -> None:
    n_rows, n_mebibytes = (6_000, 512) if parse_quick_flag(__doc__) else (24_000, 4_096)
    spawn_context = multiprocessing.get_context("spawn")
    # Each measurement needs a new process, since a peak never decreases.
    with spawn_context.Pool(1, maxtasksperchild=1) as pool:
        measurements = {
            f"coded_map, {n_rows:,} x {COLUMNS:,}": pool.apply(measure_map, (n_rows,)),
            f"encode, {n_mebibytes:,} MiB": pool.apply(measure_encoding, (n_mebibytes,)),
        }
    print_table(
        ("(32, 24), float64, MiB", "libraries", "peak above", "bound", "peak / bound"),
        [(name, *mib_values, mib_values[1] / mib_values[2]) for name, mib_values in measurements.items()],
    )


if __name__ == "__main__":
    main()
