"""Systems that scipy's solvers cannot solve."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap import ReplayExecutor
from polarmap.errors import ModelError
from polarmap.glm import LeastSquares


def test_dependent_features_are_named() -> None:
    X = np.random.default_rng(0).standard_normal((50, 3))
    X = np.column_stack([X, X.sum(axis=1) + 1e-14 * X[:, 0] ** 2])
    with pytest.raises(ModelError, match=r"depend on each other: the condition number .* exceeds 1e\+12"):
        LeastSquares(tol=0.0, blocks=4, executor=ReplayExecutor()).fit(X, X[:, 0] ** 2)
