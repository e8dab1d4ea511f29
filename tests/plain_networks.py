"""Convex networks whose products are numpy's: the same iterations, without the cost of coded maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor


class PlainOperator(LinearOperator):
    """What the models need of a CodedOperator."""

    report = None

    def __init__(self, A: Any) -> None:
        super().__init__(np.float64, A.shape)
        self._A, self.products = A, 0

    def __enter__(self) -> PlainOperator:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held."""

    def _matmat(self, V: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._A @ V

    def _rmatmat(self, U: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._A.T @ U

    def gram(self, weights: np.ndarray) -> np.ndarray:
        self.products += 1
        return self._A.T @ (weights[:, None] * self._A)


class PlainRegressor(ConvexMLPRegressor):
    def _operator(self, A: Any) -> Any:
        return PlainOperator(A)


class PlainClassifier(ConvexMLPClassifier):
    def _operator(self, A: Any) -> Any:
        return PlainOperator(A)
