"""Models with a dead and a late worker in every product, and their comparison with an oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


class Straggling(ReplayExecutor):
    """An executor whose task 1 never reports; estimators can copy and pickle it as a parameter."""

    def __init__(self) -> None:
        super().__init__({1: math.inf})

    def __reduce__(self) -> tuple[Any, ...]:
        return Straggling, ()


def options(**more: Any) -> dict[str, Any]:
    """Return options with which 4 of 7 workers suffice; of the data workers, one is dead and one late."""
    faulty = FaultyExecutor(Straggling(), {0: Fault("kill", attempts=99)})
    return {"blocks": 4, "tasks": 7, "executor": faulty, **more}


def standardized(data: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = data(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def assert_same_model(model: Any, oracle: Any, X: np.ndarray) -> None:
    size = max(1.0, np.abs(oracle.coef_).max())
    np.testing.assert_allclose(model.coef_, oracle.coef_, atol=1e-6 * size, rtol=0)
    np.testing.assert_allclose(
        model.intercept_, oracle.intercept_, atol=1e-6 * max(size, np.abs(oracle.intercept_).max())
    )
    np.testing.assert_allclose(model.predict(X), oracle.predict(X), rtol=1e-6, atol=1e-6 * size)
    assert 0 in model.report_.recovered
    assert model.n_iter_ >= 1
