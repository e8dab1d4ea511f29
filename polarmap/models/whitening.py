"""Whitening: a change of variables that gives all directions of the features about the same variance.

First-order methods converge faster in these coordinates, because one step length suits all directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from polarmap.dtypes import Floats
from polarmap.models.operators import RealMatrixOperator, compute_weighted_mean_and_variance

MAX_ROTATED_FEATURES = 2000  # Above this number, features are scaled but not rotated to the principal axes.
MIN_RELATIVE_SCALE = 1e-6  # Lower bound on the scale of a direction, relative to the largest scale.


class WhiteningOperator(RealMatrixOperator):
    """An operator W that whitens features: the columns of A W have about the same variance.

    It is defined by W z = axes (z / scale). The axes are orthonormal, so coefficients w = W z have the norm
    |z / scale|.

    Parameters
    ----------
    axes : array or sparse array (features, features)
        Principal axes as columns, or a sparse identity matrix.
    scale : array (features,)
        Root mean square of the data along each axis.
    """

    def __init__(self, axes: Any, scale: Floats) -> None:
        super().__init__(np.float64, axes.shape)
        self.axes, self.scale = axes, scale

    def _matmat(self, Z: Floats) -> Floats:
        return np.asarray(self.axes @ (Z / self.scale[:, np.newaxis]))

    def _rmatmat(self, R: Floats) -> Floats:
        return np.asarray((self.axes.T @ R) / self.scale[:, np.newaxis])


def fit_whitening_operator(X: Any, sample_weight: Floats, fit_intercept: bool) -> WhiteningOperator:
    """Compute the whitening operator of X from its weighted Gram matrix.

    Let A = X, or A = [X, 1] with an intercept, and let B = A W be the whitened features. The largest
    eigenvalue of B' diag(sample_weight) B is then at most 1. All eigenvalues are 1, except in directions with
    almost no data. If there are more than MAX_ROTATED_FEATURES features, the features are only scaled, not
    rotated, and the other eigenvalues may be smaller.

    Parameters
    ----------
    X : array or sparse array (samples, features)
        Features.
    sample_weight : array (samples,)
        Weight of each sample. The weights must sum to 1.
    fit_intercept : bool
        Whether to append a constant feature 1.
    """
    n_features = X.shape[1] + fit_intercept
    if n_features > MAX_ROTATED_FEATURES:
        _, second_moments = compute_weighted_mean_and_variance(X, sample_weight, False)
        second_moments = np.append(second_moments, [1.0] * fit_intercept)
        # If each feature has mean square 1, the largest eigenvalue of the Gram matrix is at most n_features.
        # Scale by its square root as well, so that the eigenvalue is at most 1.
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
    """Return `scale` with each value raised to at least MIN_RELATIVE_SCALE times the maximum.

    Return ones if all values are 0.
    """
    max_scale = float(scale.max(initial=0.0))
    return np.maximum(scale, MIN_RELATIVE_SCALE * max_scale) if max_scale > 0 else np.ones_like(scale)
