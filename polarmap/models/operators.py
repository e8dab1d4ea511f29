"""Linear operators of standardized, weighted or gated features and of an intercept, by products with X."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator

from polarmap.dtypes import FLOAT64_EPS, Floats


def compute_weighted_mean_and_variance(X: Any, sample_weight: Floats, center: bool) -> tuple[Floats, Floats]:
    """Mean of each feature of X, or zeros, and the mean square of its deviation, 0 where that is rounding.

    sample_weight : of the samples; their sum is 1.
    """
    mean, variance = _compute_mean_and_variance(X, sample_weight, center)
    return mean, np.where(variance <= (10 * FLOAT64_EPS * mean) ** 2, 0.0, variance)


def _compute_mean_and_variance(X: Any, sample_weight: Floats, center: bool) -> tuple[Floats, Floats]:
    if not issparse(X):
        mean = sample_weight @ X if center else np.zeros(X.shape[1])
        return mean, sample_weight @ (X - mean) ** 2
    # Deviations are added up, zeros apart: a difference of sums would lose those of a constant feature.
    X_csc = X.tocsc()
    n_features = X_csc.shape[1]
    column_indices = np.repeat(np.arange(n_features), np.diff(X_csc.indptr))
    entry_weights = sample_weight[X_csc.indices]
    mean = np.zeros(n_features)
    if center:
        mean += np.bincount(column_indices, entry_weights * X_csc.data, n_features)
    zero_weight = 1.0 - np.bincount(column_indices, entry_weights, n_features)
    zero_weight[zero_weight <= FLOAT64_EPS * X_csc.shape[0]] = 0.0  # rounding: no sample is one
    variance = (
        np.bincount(column_indices, entry_weights * (X_csc.data - mean[column_indices]) ** 2, n_features)
        + zero_weight * mean**2
    )
    return mean, np.asarray(variance, np.float64)


class RealMatrixOperator(LinearOperator):  # type: ignore[misc]
    """A real operator that says its products with matrices: a vector is one of a single column."""

    def _rmatvec(self, u: Floats) -> Floats:
        return np.asarray(self._rmatmat(np.reshape(u, (-1, 1)))[:, 0])


class StandardizedOperator(RealMatrixOperator):
    """diag(root) (X - 1 mean') diag(scale), by products with X alone; without root that of the identity."""

    def __init__(self, operator: Any, mean: Floats, scale: Floats, sqrt_weight: Floats | None = None) -> None:
        super().__init__(np.float64, operator.shape)
        self._operator, self._mean, self._scale = operator, mean, scale
        self._sqrt_weight = np.ones(operator.shape[0]) if sqrt_weight is None else sqrt_weight

    def _matmat(self, V: Floats) -> Floats:
        scaled = self._scale[:, np.newaxis] * V
        return np.asarray(self._sqrt_weight[:, np.newaxis] * (self._operator @ scaled - self._mean @ scaled))

    def _rmatmat(self, U: Floats) -> Floats:
        weighted = self._sqrt_weight[:, np.newaxis] * U
        centered = self._operator.H @ weighted - np.outer(self._mean, weighted.sum(axis=0))
        return np.asarray(self._scale[:, np.newaxis] * centered)


class AppendedInterceptOperator(RealMatrixOperator):
    """[A, unit 1], for an intercept, by products with A alone.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> (AppendedInterceptOperator(aslinearoperator(np.eye(2)), 3.0) @ np.eye(3)).tolist()
    [[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]]
    """

    def __init__(self, operator: Any, intercept_scaling: float) -> None:
        super().__init__(np.float64, (operator.shape[0], operator.shape[1] + 1))
        self._operator, self._intercept_scaling = operator, intercept_scaling

    def _matmat(self, V: Floats) -> Floats:
        return np.asarray(self._operator @ V[:-1] + self._intercept_scaling * V[-1])

    def _rmatmat(self, U: Floats) -> Floats:
        return np.vstack([self._operator.H @ U, self._intercept_scaling * U.sum(axis=0)])


class GatedOperator(RealMatrixOperator):
    """[D_1 A, ..., D_P A] with D_i = diag(pattern i), by products with A alone: one of P times the columns.

    Columns are ordered by those of A first, by gates second.
    """

    def __init__(self, operator: Any, patterns: npt.ArrayLike) -> None:
        self._operator, self._patterns = operator, np.asarray(patterns, dtype=np.float64)
        n_samples, n_features = operator.shape
        super().__init__(np.float64, (n_samples, n_features * self._patterns.shape[1]))

    def _matmat(self, V: Floats) -> Floats:
        n_samples, n_features = self._operator.shape
        products = self._operator.matmat(np.reshape(V, (n_features, -1)))
        products = np.reshape(products, (n_samples, self._patterns.shape[1], -1))
        return np.asarray(np.einsum("sg,sgo->so", self._patterns, products))

    def _rmatmat(self, U: Floats) -> Floats:
        gated = self._patterns[:, :, np.newaxis] * U[:, np.newaxis, :]
        product = self._operator.rmatmat(gated.reshape(len(U), -1))
        return np.reshape(product, (-1, U.shape[1]))
