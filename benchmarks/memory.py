"""Peak memory of the driver during one coded_map, against data + parity + 1.5 x results."""

from __future__ import annotations

import resource

import numpy as np

import polarmap
from benchmarks import is_quick
from polarmap import Fault, FaultyExecutor
from polarmap.code import tiled


def peak() -> float:
    """The most memory this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_with_libraries() -> float:
    """What a map of next to no data takes that loads all libraries, the compiled loops too."""
    least, tiled.COMPILED_FROM_BYTES = tiled.COMPILED_FROM_BYTES, 0
    polarmap.coded_map(lambda block: block, np.ones((48, 2)), executor=polarmap.ReplayExecutor({2: np.inf}))
    tiled.COMPILED_FROM_BYTES = least
    polarmap.coded_map(lambda block: block, np.ones((48, 2)))
    return peak()


def main() -> None:
    rows = 6_000 if is_quick(__doc__) else 24_000
    libraries = peak_with_libraries()
    A = np.ones((rows, 2_000))
    data = A.nbytes / 2**20
    faults = {2: Fault("sleep", 60), 5: Fault("kill")}
    y = polarmap.coded_map(lambda block: 2 * block, A, workers=32, executor=FaultyExecutor(None, faults))
    used = peak() - libraries
    results = sum(result.nbytes for result in y) / 2**20
    bound = data + data / 3 + 1.5 * results
    print(f"(32, 24), float64, MiB: data {data:.0f}, parity {data / 3:.0f}, results {results:.0f}")
    print(f"peak of the driver above its libraries {used:.0f}, bound {bound:.0f}: {used / bound:.2f} (<= 1)")


if __name__ == "__main__":
    main()
