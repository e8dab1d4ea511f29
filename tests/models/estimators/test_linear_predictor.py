"""LinearPredictorEstimator: the problem that a solver receives, and coefficients from its solution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from polarmap.models.estimators.linear_predictor import LinearPredictorEstimator
from polarmap.models.losses import BernoulliFamily, MultinomialFamily, WeightedLoss
from polarmap.models.solvers.solver import Solution
from polarmap.testing import ReplayExecutor

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((20, 3)) * [1.0, 10.0, 0.1] + 5.0
SHARES = np.arange(1.0, 21.0) / 210
CLASSES = np.arange(20) % 3


class Guess(LinearPredictorEstimator):
    """A model whose solver records its arguments and returns the given V as its solution."""

    def __init__(self, fit_intercept: bool, V: np.ndarray) -> None:
        self.fit_intercept, self.V = fit_intercept, V
        self.blocks, self.tasks, self.code, self.timeout = 2, 3, "auto", None
        self.tol, self.max_iter, self.verbose = 0.0, 1, 0
        self.executor = ReplayExecutor()

    def _make_solver(self, operator: Any, loss: Any, penalty_strengths: Any, start: Any) -> Any:
        self.penalty, self.null, self.predictor = penalty_strengths, operator @ start, operator @ self.V
        return lambda **options: Solution(self.V, 0.0, None, 0.0, 1, True)


@pytest.mark.parametrize("data", [X, csr_array(X)], ids=["dense", "sparse"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("family", [BernoulliFamily(), MultinomialFamily()], ids=["two", "three"])
def test_coefficients_and_intercepts_are_those_of_the_solvers_predictor(
    data: Any, fit_intercept: bool, family: Any
) -> None:
    y = np.eye(3)[CLASSES] if isinstance(family, MultinomialFamily) else (CLASSES[:, None] == 0).astype(float)
    loss = WeightedLoss(family, y, SHARES)
    model = Guess(fit_intercept, STREAM.standard_normal((3 + fit_intercept, y.shape[1])))
    coef, intercept = model._fit_coefficients(data, loss, 0.5)
    np.testing.assert_allclose(X @ coef.T + intercept, model.predictor, atol=1e-12)
    null = loss.fit_null_predictor() if fit_intercept else np.zeros(y.shape[1])
    np.testing.assert_allclose(model.null, np.broadcast_to(null, y.shape), atol=1e-12)
    squares = 0.5 * (coef / model.V[:3].T) ** 2
    np.testing.assert_allclose(squares, np.broadcast_to(model.penalty[:3], squares.shape))
    assert model.penalty[3:].tolist() == [0.0] * fit_intercept
