"""Hide data from workers, and get results by a deadline, exact or estimated."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

import polarmap
from polarmap.codes import SecretSharing
from polarmap.testing import Fault, FaultyExecutor


def main() -> None:
    rng = np.random.default_rng(0)
    A, w = rng.standard_normal((2_000, 30)), rng.standard_normal(30)
    print("noise  bits an entry  error of A @ w")
    with ThreadPoolExecutor(12) as pool:
        for noise in (10, 100, 1000):
            result = polarmap.coded_map(
                lambda block: block @ w, A, blocks=7, tasks=12,
                code=SecretSharing(n_colluders=2, noise=noise), executor=pool,
            )  # fmt: skip
            leaked_bits = polarmap.codes.SecretSharingCode(12, 7, 2, noise).leakage()
            error = np.abs(result.concatenate() - A @ w).max() / np.abs(A @ w).max()
            print(f"{noise:5}  {leaked_bits:13.1g}  {error:.1g}")

    X = rng.standard_normal((12, 400, 30))
    y = X @ w + 0.1 * rng.standard_normal((12, 400))
    blocks = [np.column_stack([rows.T @ rows, rows.T @ labels]) for rows, labels in zip(X, y)]
    v = np.zeros(30)
    print("\nleast squares, 6 of 16 workers miss every timeout of 0.3 s")
    with ThreadPoolExecutor(16) as pool:
        for step in range(12):
            faults = {int(task): Fault("sleep", seconds=30) for task in rng.permutation(16)[:6]}
            block_gradients = polarmap.coded_map(
                lambda block, v=v: block[:, :-1] @ v - block[:, -1], blocks, tasks=16,
                executor=FaultyExecutor(pool, faults), timeout=0.3, on_timeout="estimate",
            )  # fmt: skip
            v = v - sum(block_gradients) / 4800
            if step % 4 == 3:
                n_estimated = len(block_gradients.report.estimated_blocks)
                relative_error = np.linalg.norm(v - w) / np.linalg.norm(w)
                print(f"step {step}: {n_estimated} blocks estimated, weights off by {relative_error:.1g}")


if __name__ == "__main__":
    main()
