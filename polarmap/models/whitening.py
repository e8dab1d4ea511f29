"""Coordinates of the features in which their second moments are 1: a first-order method's steps fit all."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from polarmap.dtypes import Floats
from polarmap.models.features import MatrixOperator, moments

LARGEST_ROTATION = 2000  # features: above, they are scaled but not rotated
LEAST_SCALE = 1e-6  # of the largest: directions with less in them are stretched no further


class Whitening(MatrixOperator):
    """w = axes (z / scale), with orthogonal axes: |w| = |z / scale|; A @ this are the whitened features.

    axes : principal ones, or a sparse identity.
    scale : root mean square of the data along each.
    """

    def __init__(self, axes: Any, scale: Floats) -> None:
        super().__init__(np.float64, axes.shape)
        self.axes, self.scale = axes, scale

    def _matmat(self, Z: Floats) -> Floats:
        return np.asarray(self.axes @ (Z / self.scale[:, np.newaxis]))

    def _rmatmat(self, R: Floats) -> Floats:
        return np.asarray((self.axes.T @ R) / self.scale[:, np.newaxis])

    def whitened(self, w: Floats) -> Floats:
        """The z (features, columns) of coefficients w."""
        return np.asarray(self.scale[:, np.newaxis] * (self.axes.T @ w))


def principal_axes(X: Any, shares: Floats, fit_intercept: bool) -> Whitening:
    """The principal axes of X (samples, features), with an intercept also of a feature 1, by shares of sum 1.

    A' diag(shares) A is at most 1 for the whitened A, and 1 but for directions with nearly no data.
    """
    features = X.shape[1] + fit_intercept
    if features > LARGEST_ROTATION:
        squares = np.append(moments(X, shares, False)[1], [1.0] * fit_intercept)
        # The largest eigenvalue is at most that many times the largest moment of one.
        return Whitening(sparse.eye_array(features), _bounded(np.sqrt(features * squares)))
    weighted = sparse.diags_array(shares) @ X if sparse.issparse(X) else shares[:, np.newaxis] * X
    gram = X.T @ weighted
    gram = gram.toarray() if sparse.issparse(gram) else gram
    if fit_intercept:
        mean = np.reshape(shares @ X, (1, -1))
        gram = np.block([[gram, mean.T], [mean, np.ones((1, 1))]])
    squares, axes = np.linalg.eigh(gram)
    return Whitening(axes, _bounded(np.sqrt(np.maximum(squares, 0.0))))


def _bounded(scale: Floats) -> Floats:
    """None below a small part of the largest; 1 where all are 0."""
    largest = float(scale.max(initial=0.0))
    return np.maximum(scale, LEAST_SCALE * largest) if largest > 0 else np.ones_like(scale)
