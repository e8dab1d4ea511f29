"""Features as solvers see them, centred, scaled, beside a constant, of which only those of the data exist."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator

from polarmap.dtypes import FLOAT64_EPS, Floats


def moments(X: Any, shares: Floats, is_centred: bool) -> tuple[Floats, Floats]:
    """Mean of each feature of X, or zeros, and the mean square of its deviation, 0 where that is rounding.

    shares : of the samples; their sum is 1.
    """
    mean, square = _moments(X, shares, is_centred)
    return mean, np.where(square <= (10 * FLOAT64_EPS * mean) ** 2, 0.0, square)


def _moments(X: Any, shares: Floats, is_centred: bool) -> tuple[Floats, Floats]:
    if not issparse(X):
        mean = shares @ X if is_centred else np.zeros(X.shape[1])
        return mean, shares @ (X - mean) ** 2
    # Deviations are added up, zeros apart: a difference of sums would lose those of a constant feature.
    columns = X.tocsc()
    features = columns.shape[1]
    which = np.repeat(np.arange(features), np.diff(columns.indptr))
    weights = shares[columns.indices]
    mean = np.zeros(features)
    if is_centred:
        mean += np.bincount(which, weights * columns.data, features)
    zeros = 1.0 - np.bincount(which, weights, features)
    zeros[zeros <= FLOAT64_EPS * columns.shape[0]] = 0.0  # rounding: no sample is one
    square = np.bincount(which, weights * (columns.data - mean[which]) ** 2, features) + zeros * mean**2
    return mean, np.asarray(square, np.float64)


class MatrixOperator(LinearOperator):  # type: ignore[misc]
    """A real operator that says its products with matrices: a vector is one of a single column."""

    def _rmatvec(self, u: Floats) -> Floats:
        return np.asarray(self._rmatmat(np.reshape(u, (-1, 1)))[:, 0])


class ScaledOperator(MatrixOperator):
    """diag(root) (X - 1 mean') diag(scale), by products with X alone; without root that of the identity."""

    def __init__(self, operator: Any, mean: Floats, scale: Floats, root: Floats | None = None) -> None:
        super().__init__(np.float64, operator.shape)
        self._operator, self._mean, self._scale = operator, mean, scale
        self._root = np.ones(operator.shape[0]) if root is None else root

    def _matmat(self, V: Floats) -> Floats:
        scaled = self._scale[:, np.newaxis] * V
        return np.asarray(self._root[:, np.newaxis] * (self._operator @ scaled - self._mean @ scaled))

    def _rmatmat(self, U: Floats) -> Floats:
        weighted = self._root[:, np.newaxis] * U
        centred = self._operator.H @ weighted - np.outer(self._mean, weighted.sum(axis=0))
        return np.asarray(self._scale[:, np.newaxis] * centred)


class ConstantFeature(MatrixOperator):
    """[A, unit 1], for an intercept, by products with A alone.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> (ConstantFeature(aslinearoperator(np.eye(2)), 3.0) @ np.eye(3)).tolist()
    [[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]]
    """

    def __init__(self, operator: Any, unit: float) -> None:
        super().__init__(np.float64, (operator.shape[0], operator.shape[1] + 1))
        self._operator, self._unit = operator, unit

    def _matmat(self, V: Floats) -> Floats:
        return np.asarray(self._operator @ V[:-1] + self._unit * V[-1])

    def _rmatmat(self, U: Floats) -> Floats:
        return np.vstack([self._operator.H @ U, self._unit * U.sum(axis=0)])
