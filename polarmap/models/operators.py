"""Linear operators that standardize, weight or gate features, or append a constant column.

Each operator computes its products from products of another operator, usually a `CodedOperator`. Models
combine these operators, so that a sparse or large X is never copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator

from polarmap.dtypes import FLOAT64_EPS, Floats


def compute_weighted_mean_and_variance(X: Any, sample_weight: Floats, center: bool) -> tuple[Floats, Floats]:
    """Compute the weighted mean and variance of each feature.

    Parameters
    ----------
    X : array or sparse array (samples, features)
        Features.
    sample_weight : array (samples,)
        Weight of each sample. The weights must sum to 1.
    center : bool
        If False, return zeros as means, and mean squares as variances.

    Returns
    -------
    mean : array (features,)
    variance : array (features,)
        Exactly 0 for each feature that is constant up to rounding.
    """
    mean, variance = _compute_mean_and_variance(X, sample_weight, center)
    return mean, np.where(variance <= (10 * FLOAT64_EPS * mean) ** 2, 0.0, variance)


def _compute_mean_and_variance(X: Any, sample_weight: Floats, center: bool) -> tuple[Floats, Floats]:
    if not issparse(X):
        mean = sample_weight @ X if center else np.zeros(X.shape[1])
        return mean, sample_weight @ (X - mean) ** 2
    # Sum the squared deviations of stored entries and of zeros separately, because the difference mean(x^2) -
    # mean(x)^2 would suffer from cancellation for a nearly constant feature.
    X_csc = X.tocsc()
    n_features = X_csc.shape[1]
    column_indices = np.repeat(np.arange(n_features), np.diff(X_csc.indptr))
    entry_weights = sample_weight[X_csc.indices]
    mean = np.zeros(n_features)
    if center:
        mean += np.bincount(column_indices, entry_weights * X_csc.data, n_features)
    zero_weight = 1.0 - np.bincount(column_indices, entry_weights, n_features)
    # The total weight of the zeros in a column without zeros is 0, but rounding errors may make it positive.
    zero_weight[zero_weight <= FLOAT64_EPS * X_csc.shape[0]] = 0.0
    variance = (
        np.bincount(column_indices, entry_weights * (X_csc.data - mean[column_indices]) ** 2, n_features)
        + zero_weight * mean**2
    )
    return mean, np.asarray(variance, np.float64)


class RealMatrixOperator(LinearOperator):  # type: ignore[misc]
    """Base class of linear operators with real entries.

    A subclass only implements products with matrices. Products with vectors are derived from them.
    """

    def _rmatvec(self, u: Floats) -> Floats:
        return np.asarray(self._rmatmat(np.reshape(u, (-1, 1)))[:, 0])


class StandardizedOperator(RealMatrixOperator):
    """An operator that standardizes features: diag(sqrt_weight) (X - 1 mean') diag(scale).

    Products are computed from products with X. The standardized matrix is never formed.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        Features X.
    mean, scale : arrays (features,)
        Number to subtract from each feature, and factor to multiply the difference by.
    sqrt_weight : array (samples,), optional
        Factor of each sample. By default, 1.
    """

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
    """An operator that appends a constant column for the intercept: [A, intercept_scaling * 1].

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        Features A.
    intercept_scaling : float
        Value of the constant column.

    Examples
    --------
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
    """The data matrix of a gated ReLU network: P copies of A, in which closed gates set samples to zero.

    The matrix [D_1 A, ..., D_P A] with D_i = diag(patterns[:, i]) has one row per sample and P columns for
    each feature. It is never formed: a product with c columns takes one product of A with P c columns. The
    columns are ordered first by column of A, then by gate.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        Features A.
    patterns : bool array (samples, P)
        True where one of the P gates is open for a sample.
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
