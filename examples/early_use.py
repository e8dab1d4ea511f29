"""Process early blocks while late blocks are still being computed, with a future for each block."""

from __future__ import annotations

import time
from concurrent.futures import as_completed

import numpy as np

import polarmap
from polarmap.testing import Fault, FaultyExecutor

WEIGHTS = np.random.default_rng(0).standard_normal((300, 300)) / 300


def smooth(fields: np.ndarray) -> np.ndarray:
    """Map rows linearly. The pause stands for more work."""
    time.sleep(0.3)
    return fields @ WEIGHTS


def upload_block(block: np.ndarray) -> float:
    """Process a block of results, which also takes time."""
    time.sleep(0.15)
    return float(block.sum())


def main() -> None:
    fields = np.random.default_rng(1).standard_normal((12 * 300, 300))
    with polarmap.Pool(workers=6) as pool:
        polarmap.coded_map(np.negative, fields, blocks=12, executor=pool)  # starts the workers
        executor = FaultyExecutor(pool, {task: Fault("sleep", seconds=60) for task in (3, 8)})
        started_at = time.perf_counter()
        late_uploads = [*map(upload_block, polarmap.coded_map(smooth, fields, blocks=12, executor=executor))]
        seconds = time.perf_counter() - started_at

        started_at = time.perf_counter()
        future = polarmap.submit(polarmap.coded_map, smooth, fields, blocks=12, executor=executor)
        indices = {block: index for index, block in enumerate(future.blocks)}
        uploads = {indices[block]: upload_block(block.result()) for block in as_completed(future.blocks)}
        gain = seconds - (time.perf_counter() - started_at)

    assert np.allclose([uploads[index] for index in range(12)], late_uploads)
    print(f"two of 16 tasks sleep; decoded blocks: {future.report.recovered}")
    print(f"uploads after the map: {seconds:.2f} s in total; uploads during the map: {gain:.2f} s less")


if __name__ == "__main__":
    main()
