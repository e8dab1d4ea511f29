"""A matrix as an operator with Gram matrices, as CodedOperator has them, whose products are counted."""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import LinearOperator


class DenseOperator(LinearOperator):
    def __init__(self, A: np.ndarray) -> None:
        super().__init__(np.float64, A.shape)
        self._A, self.products = A, 0

    def _matmat(self, V: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._A @ V

    def _rmatmat(self, U: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._A.T @ U

    def gram(self, weights: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._A.T @ (weights[:, None] * self._A)
