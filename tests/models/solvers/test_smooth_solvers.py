"""The derivatives of the objective that scipy minimizes; the oracles are finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from polarmap.models.losses import BernoulliFamily, MultinomialFamily, WeightedLoss
from polarmap.models.operators import AppendedInterceptOperator
from polarmap.models.penalties import ElasticNetPenalty
from polarmap.models.solvers.proximal_gradient import CompositeProblem
from polarmap.models.solvers.smooth_solvers import ScipyObjective

STREAM = np.random.default_rng(0)
A = STREAM.standard_normal((20, 3))
PENALTY = np.array([0.1, 0.2, 0.3])
CLASSES = np.arange(20) % 3


def objective(classes: int, unit: float) -> ScipyObjective:
    y = np.eye(3)[CLASSES] if classes == 3 else (CLASSES[:, None] == 0).astype(float)
    loss = WeightedLoss(
        MultinomialFamily() if classes == 3 else BernoulliFamily(), y, np.arange(1.0, 21.0) / 210
    )
    operator = AppendedInterceptOperator(aslinearoperator(A), unit) if unit else aslinearoperator(A)
    squares = np.repeat(np.append(PENALTY, 0.0) if unit else PENALTY, y.shape[1])
    return ScipyObjective(CompositeProblem(operator, loss, ElasticNetPenalty(0.0, squares)), squares)


def point(classes: int, unit: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3 + bool(unit)) * (classes if classes > 2 else 1))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("unit", [0.0, 2.0])
def test_gradient_and_hessian_are_the_derivatives(classes: int, unit: float) -> None:
    scipy_objective = objective(classes, unit)
    theta, direction = point(classes, unit, 1), point(classes, unit, 2)
    step = 1e-5 * direction
    (more, rising), (less, falling) = (
        scipy_objective.value_and_gradient(theta + step),
        scipy_objective.value_and_gradient(theta - step),
    )
    assert (more - less) / 2e-5 == pytest.approx(
        scipy_objective.value_and_gradient(theta)[1] @ direction, rel=1e-6
    )
    np.testing.assert_allclose(
        (rising - falling) / 2e-5, scipy_objective.hessian_product(theta, direction), rtol=1e-5, atol=1e-8
    )


def test_objective_of_nan_is_infinite() -> None:
    scipy_objective = objective(2, 1.0)
    theta = np.full_like(point(2, 1.0, 1), np.nan)
    assert scipy_objective.value_and_gradient(theta)[0] == np.inf
    assert np.isnan(scipy_objective.hessian_product(theta, theta)).all()
