"""Gated networks where Newton steps do not suffice: FISTA takes over, to the same minimum."""

from __future__ import annotations

import numpy as np
import pytest
from plain_networks import PlainRegressor
from scipy.sparse import csr_array

from polarmap.models.solvers import gated_training, group_newton

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((40, 2))
Y = np.abs(X[:, 0]) - np.maximum(X[:, 1], 0) + 0.1 * STREAM.standard_normal(40)


@pytest.mark.parametrize("min_columns", [1, 10])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_fista_finds_the_minimum_of_newton_steps(
    min_columns: int, fit_intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PlainRegressor(0.05, n_gates=8, fit_intercept=fit_intercept)
    objective = model.fit(X, Y).objective_
    n_newton = model.n_iter_
    monkeypatch.setattr(group_newton, "MAX_SYSTEM_SIZE", 6)
    monkeypatch.setattr(gated_training, "MIN_WORKING_COLUMNS", min_columns)
    for samples in (X, csr_array(X)):
        model.fit(samples, Y)
        assert model.objective_ == pytest.approx(objective, rel=2e-6)
        assert model.dual_gap_ <= 1e-6 * model.objective_
        assert model.n_iter_ > n_newton
