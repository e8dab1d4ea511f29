"""Peak memory of the driver, above its libraries: of one coded_map, and of encoding a mapped file.

A map is to stay below data + parity + 1.5 x results, encoding below twice its `memory=256 MiB`.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

import polarmap
from benchmarks import is_quick, show
from polarmap.codes import tiling
from polarmap.testing import Fault, FaultyExecutor

MIB, COLUMNS = 1 << 20, 2_000


def peak() -> float:
    """MiB that this process has held at most; getrusage would count its parent's from before it began."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def peak_with_libraries() -> float:
    """What a map of next to no data takes that loads all libraries, the compiled loops too."""
    least, tiling.MIN_COMPILED_BYTES = tiling.MIN_COMPILED_BYTES, 0
    polarmap.coded_map(
        lambda block: block, np.ones((48, 2)), executor=polarmap.testing.ReplayExecutor({2: np.inf})
    )
    tiling.MIN_COMPILED_BYTES = least
    polarmap.coded_map(lambda block: block, np.ones((48, 2)))
    return peak()


def of_map(rows: int) -> tuple[float, float, float]:
    """MiB before a map with a straggler and a dead worker, of it, and what that is to stay below."""
    libraries, A = peak_with_libraries(), np.ones((rows, COLUMNS))
    unlucky = FaultyExecutor(None, {2: Fault("sleep", 60), 5: Fault("kill")})
    y = polarmap.coded_map(lambda block: 2 * block, A, tasks=32, executor=unlucky)
    results = sum(result.nbytes for result in y)
    return libraries, peak() - libraries, (A.nbytes * 4 / 3 + 1.5 * results) / MIB


def of_encoding(mebibytes: int) -> tuple[float, float, float]:
    """The same of encoding a file as large as that, with the default `memory`; libraries come as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        rows = mebibytes * MIB // (8 * COLUMNS)
        np.lib.format.open_memmap(f"{folder}/A.npy", "w+", shape=(rows, COLUMNS))[:: rows // 100] = 1.0
        libraries = peak()
        polarmap.encode(f"{folder}/A.npy", blocks=24, tasks=32, name="A", storage=folder)
        return libraries, peak() - libraries, 512


def main() -> None:
    rows, mebibytes = (6_000, 512) if is_quick(__doc__) else (24_000, 4_096)
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(1, maxtasksperchild=1) as pool:  # memory once held counts for ever
        taken = {
            f"coded_map, {rows:,} x {COLUMNS:,}": pool.apply(of_map, (rows,)),
            f"encode, {mebibytes:,} MiB": pool.apply(of_encoding, (mebibytes,)),
        }
    show(
        ("(32, 24), float64, MiB", "libraries", "peak above", "bound", "of it"),
        [(name, *found, found[1] / found[2]) for name, found in taken.items()],
    )


if __name__ == "__main__":
    main()
