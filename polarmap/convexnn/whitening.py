"""Coordinates of the features in which their second moments are 1: a first-order method's steps fit all."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import LinearOperator

Floats = npt.NDArray[np.float64]

LARGEST_ROTATION = 2000  # features: above, they are scaled but not rotated
LEAST_SCALE = 1e-6  # of the largest: directions with less in them are stretched no further


class Whitening(NamedTuple):
    """w = axes (z / scale), with orthogonal axes: |w| = |z / scale|.

    Attributes
    ----------
    axes : (features, features)
        Principal axes, or a sparse identity.
    scale : (features,)
        Root mean square of the data along each.
    """

    axes: Any
    scale: Floats

    def coefficients(self, z: Floats) -> Floats:
        """Of the features as they are, from those (features, columns) of whitened ones."""
        return np.asarray(self.axes @ (z / self.scale[:, np.newaxis]))

    def whitened(self, w: Floats) -> Floats:
        """The inverse of `coefficients`."""
        return np.asarray(self.scale[:, np.newaxis] * (self.axes.T @ w))


def whitening(X: Any, shares: Floats, fit_intercept: bool) -> Whitening:
    """Of X (samples, features), and a feature that is 1 with an intercept, weighted by shares of sum 1.

    A' diag(shares) A is at most 1 for the whitened A, and 1 but for directions with nearly no data.
    """
    features = X.shape[1] + fit_intercept
    mean = np.asarray(shares @ X).reshape(-1)
    if features > LARGEST_ROTATION:
        square = shares @ (X.power(2) if sparse.issparse(X) else X**2)
        moments = np.append(square, 1.0) if fit_intercept else np.asarray(square)
        # The largest eigenvalue is at most that many times the largest moment of one.
        return Whitening(sparse.eye_array(features), _bounded(np.sqrt(features * moments)))
    weighted = sparse.diags_array(shares) @ X if sparse.issparse(X) else shares[:, np.newaxis] * X
    gram = X.T @ weighted
    gram = gram.toarray() if sparse.issparse(gram) else gram
    if fit_intercept:
        gram = np.block([[gram, mean[:, np.newaxis]], [mean, np.ones((1, 1))]])
    moments, axes = np.linalg.eigh(gram)
    return Whitening(axes, _bounded(np.sqrt(np.maximum(moments, 0.0))))


def _bounded(scale: Floats) -> Floats:
    """None below a small part of the largest; 1 where all are 0."""
    largest = float(scale.max(initial=0.0))
    return np.maximum(scale, LEAST_SCALE * largest) if largest > 0 else np.ones_like(scale)


class WhitenedOperator(LinearOperator):  # type: ignore[misc]
    """A axes / scale, by products with A alone.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
        A.
    whitening : Whitening
    """

    def __init__(self, operator: Any, whitening: Whitening) -> None:
        super().__init__(np.float64, operator.shape)
        self._operator, self._whitening = operator, whitening

    def _matmat(self, Z: Floats) -> Floats:
        return np.asarray(self._operator.matmat(self._whitening.coefficients(Z)))

    def _rmatmat(self, R: Floats) -> Floats:
        axes, scale = self._whitening
        return np.asarray((axes.T @ self._operator.rmatmat(R)) / scale[:, np.newaxis])

    def _matvec(self, z: Floats) -> Floats:
        return self._matmat(np.reshape(z, (-1, 1)))[:, 0]

    def _rmatvec(self, r: Floats) -> Floats:
        return self._rmatmat(np.reshape(r, (-1, 1)))[:, 0]
