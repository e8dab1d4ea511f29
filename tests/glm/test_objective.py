"""The penalized loss against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from polarmap.glm.losses import Bernoulli, Multinomial
from polarmap.glm.objective import Objective

STREAM = np.random.default_rng(0)
A = STREAM.standard_normal((20, 3))
PENALTY = np.array([0.1, 0.2, 0.3])
LABELS = np.arange(20) % 3


def objective(classes: int, unit: float) -> Objective:
    y = np.eye(3)[LABELS] if classes == 3 else (LABELS[:, None] == 0).astype(float)
    loss, weights = Multinomial() if classes == 3 else Bernoulli(), np.arange(1.0, 21.0) / 210
    return Objective(aslinearoperator(A), y, weights, loss, PENALTY, unit)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("unit", [0.0, 2.0])
def test_gradient_and_hessian_are_the_derivatives(classes: int, unit: float) -> None:
    some = objective(classes, unit)
    theta = np.random.default_rng(1).standard_normal(len(some.initial_point()))
    direction = np.random.default_rng(2).standard_normal(len(theta))
    step = 1e-5 * direction
    (more, rising), (less, falling) = (
        some.value_and_gradient(theta + step),
        some.value_and_gradient(theta - step),
    )
    assert (more - less) / 2e-5 == pytest.approx(some.value_and_gradient(theta)[1] @ direction, rel=1e-6)
    np.testing.assert_allclose(
        (rising - falling) / 2e-5, some.hessian_product(theta, direction), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("unit", [0.0, 2.0])
def test_the_initial_value_is_that_of_the_initial_point(unit: float) -> None:
    some = objective(3, unit)
    assert some.initial_value() == pytest.approx(some.value_and_gradient(some.initial_point())[0])


def test_nan_is_infinitely_bad_and_has_no_hessian() -> None:
    some = objective(2, 1.0)
    theta = np.full(len(some.initial_point()), np.nan)
    assert some.value_and_gradient(theta)[0] == np.inf
    assert np.isnan(some.hessian_product(theta, theta)).all()
