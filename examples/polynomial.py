"""Map a polynomial of every block, its Gram matrix and third moments, with workers that sleep and fail."""

from __future__ import annotations

import numpy as np

import polarmap
from polarmap.testing import Fault, FaultyExecutor


def compute_moments(block: np.ndarray) -> dict[str, np.ndarray]:
    """Return the Gram matrix and the third moments of a block, polynomials of degree 3."""
    return {"gram": block.T @ block, "third": (block**3).sum(axis=0) - block.sum(axis=0)}


def main() -> None:
    A = np.random.default_rng(0).standard_normal((5_000, 12))
    faults = {1: Fault("sleep", seconds=30), 3: Fault("raise", attempts=9), 8: Fault("sleep", seconds=30)}
    result = polarmap.coded_map(
        compute_moments, A, blocks=5, tasks=18, degree=3, executor=FaultyExecutor(None, faults)
    )
    print(result.report)
    error = max(
        np.abs(block_result[name] - compute_moments(block)[name]).max()
        / np.abs(compute_moments(block)[name]).max()
        for block_result, block in zip(result, np.split(A, 5))
        for name in block_result
    )
    print(f"largest relative error: {error:.1g}")

    try:
        polarmap.coded_map(compute_moments, A, blocks=5, tasks=18, degree=2, verify=True)
    except polarmap.errors.NotLinearError as exception:
        print(f"with degree=2: {str(exception).partition('(or')[0]}")


if __name__ == "__main__":
    main()
