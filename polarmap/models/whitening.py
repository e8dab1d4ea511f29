"""Coordinates of the features in which their second moments are 1: a first-order method's steps fit all."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from polarmap.dtypes import Floats
from polarmap.models.operators import RealMatrixOperator, compute_weighted_mean_and_variance

MAX_ROTATED_FEATURES = 2000  # features: above, they are scaled but not rotated
MIN_RELATIVE_SCALE = 1e-6  # of the largest: directions with less in them are stretched no further


class WhiteningOperator(RealMatrixOperator):
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


def fit_whitening_operator(X: Any, sample_weight: Floats, fit_intercept: bool) -> WhiteningOperator:
    """The principal axes of X (samples, features), with an intercept also of a feature 1, by shares of sum 1.

    A' diag(shares) A is at most 1 for the whitened A, and 1 but for directions with nearly no data.
    """
    n_features = X.shape[1] + fit_intercept
    if n_features > MAX_ROTATED_FEATURES:
        _, second_moments = compute_weighted_mean_and_variance(X, sample_weight, False)
        second_moments = np.append(second_moments, [1.0] * fit_intercept)
        # The largest eigenvalue is at most that many times the largest moment of one.
        return WhiteningOperator(
            sparse.eye_array(n_features), _clip_scale(np.sqrt(n_features * second_moments))
        )
    weighted_X = (
        sparse.diags_array(sample_weight) @ X if sparse.issparse(X) else sample_weight[:, np.newaxis] * X
    )
    gram = X.T @ weighted_X
    gram = gram.toarray() if sparse.issparse(gram) else gram
    if fit_intercept:
        mean = np.reshape(sample_weight @ X, (1, -1))
        gram = np.block([[gram, mean.T], [mean, np.ones((1, 1))]])
    second_moments, axes = np.linalg.eigh(gram)
    return WhiteningOperator(axes, _clip_scale(np.sqrt(np.maximum(second_moments, 0.0))))


def _clip_scale(scale: Floats) -> Floats:
    """None below a small part of the largest; 1 where all are 0."""
    max_scale = float(scale.max(initial=0.0))
    return np.maximum(scale, MIN_RELATIVE_SCALE * max_scale) if max_scale > 0 else np.ones_like(scale)
