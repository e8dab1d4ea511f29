"""Least squares on real data, every gradient by a coded map that loses a worker."""

import numpy as np
from polarmap.testing import Fault, FaultyExecutor
from sklearn.datasets import load_breast_cancer

import polarmap


def main(steps: int = 5) -> None:
    features, target = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    A = np.column_stack([features, np.ones(len(features))])
    b = target - target.mean()
    killer = FaultyExecutor(None, {2: Fault("kill", attempts=9)})

    # The gradient A'(A w - b) is two maps: rows of A to residuals, columns of A to the gradient.
    # Each is linear in its block, whatever w is.
    step = 1 / np.linalg.norm(A, 2) ** 2
    w, w_numpy = np.zeros(A.shape[1]), np.zeros(A.shape[1])
    for index in range(steps):
        point = w.copy()
        rows = polarmap.coded_map(lambda rows, w=point: rows @ w, A, blocks=6, tasks=8, executor=killer)
        residual = rows.concatenate() - b
        columns = polarmap.coded_map(
            lambda columns, r=residual: columns @ r, A.T, blocks=6, tasks=8, executor=killer
        )
        w = w - step * columns.concatenate()
        w_numpy = w_numpy - step * (A.T @ (A @ w_numpy - b))
        lost = sorted({*rows.report.recovered, *columns.report.recovered})
        loss = 0.5 * np.sum((A @ w - b) ** 2)
        error = np.abs(w - w_numpy).max()
        print(f"step {index}: loss {loss:8.3f}, blocks decoded {lost}, off numpy by {error:.1e}")
    assert np.allclose(w, w_numpy, rtol=1e-10, atol=1e-12)
    print("equal to numpy's gradient descent, although worker 2 was killed in every map")


if __name__ == "__main__":
    main()
