"""What is said of a solver that is cut short."""

from __future__ import annotations

import pytest
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from straggling_models import standardized

from polarmap import ReplayExecutor
from polarmap.glm import LogisticRegression, Ridge


def test_a_solver_that_is_cut_short_says_so() -> None:
    X, y = standardized(datasets.load_breast_cancer)
    for model in (
        Ridge(0.0, max_iter=2),
        Ridge(0.0, max_iter=2, solver="cg"),
        LogisticRegression(max_iter=2),
    ):
        with pytest.warns(ConvergenceWarning, match="max_iter=2"):
            model.set_params(blocks=4, executor=ReplayExecutor()).fit(X, y)
