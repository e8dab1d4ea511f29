"""Targets and predictions, which linear models of one target or several share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_diabetes

from polarmap import ReplayExecutor
from polarmap.convex import ElasticNet, Lasso, NonNegativeLeastSquares
from polarmap.glm import LeastSquares, Ridge

X, y = load_diabetes(return_X_y=True)
REGRESSORS = [Ridge, LeastSquares, Lasso, ElasticNet, NonNegativeLeastSquares]


@pytest.mark.parametrize("regressor", REGRESSORS)
@pytest.mark.parametrize("targets", [y, np.stack([y, y[::-1]], axis=1), np.arange(len(y))])
def test_predictions_are_linear_for_one_target_and_for_several(regressor: Any, targets: np.ndarray) -> None:
    model = regressor(blocks=2, executor=ReplayExecutor()).fit(X, targets)
    assert model.coef_.shape == (*targets.shape[1:], X.shape[1])
    expected = X @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict(sparse.csr_matrix(X)), expected, rtol=1e-9)


@pytest.mark.parametrize("regressor", REGRESSORS)
def test_several_targets_are_what_sklearn_is_told(regressor: Any) -> None:
    tags = regressor().__sklearn_tags__()
    assert tags.target_tags.multi_output and tags.input_tags.sparse
    assert tags.estimator_type == "regressor"
