"""Work on early blocks while late ones are still computed: the blocks of a future."""

from __future__ import annotations

import time
from concurrent.futures import as_completed

import numpy as np

import polarmap
from polarmap.testing import Fault, FaultyExecutor

WEIGHTS = np.random.default_rng(0).standard_normal((300, 300)) / 300


def smoothed(fields: np.ndarray) -> np.ndarray:
    """A linear map of rows, which takes a while."""
    time.sleep(0.3)
    return fields @ WEIGHTS


def upload(block: np.ndarray) -> float:
    """What is done with each block of results, and takes its time, too."""
    time.sleep(0.15)
    return float(block.sum())


def main() -> None:
    fields = np.random.default_rng(1).standard_normal((12 * 300, 300))
    with polarmap.Pool(workers=6) as pool:
        polarmap.coded_map(np.negative, fields, blocks=12, executor=pool)  # workers are there now
        executor = FaultyExecutor(pool, {task: Fault("sleep", seconds=60) for task in (3, 8)})
        began = time.perf_counter()
        afterwards = [*map(upload, polarmap.coded_map(smoothed, fields, blocks=12, executor=executor))]
        seconds = time.perf_counter() - began

        began = time.perf_counter()
        future = polarmap.submit(polarmap.coded_map, smoothed, fields, blocks=12, executor=executor)
        position = {block: number for number, block in enumerate(future.blocks)}
        early = {position[block]: upload(block.result()) for block in as_completed(future.blocks)}
        gained = seconds - (time.perf_counter() - began)

    assert np.allclose([early[number] for number in range(12)], afterwards)
    print(f"two of 16 workers asleep; decoded: {future.report.recovered}")
    print(f"all blocks, then the work on them: {seconds:.2f} s; on each as it comes: {gained:.2f} s less")


if __name__ == "__main__":
    main()
