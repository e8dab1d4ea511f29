"""Least squares by lsqr, lsmr and cg, on ill-conditioned systems, too.

The norms that lsqr and lsmr report are compared with the norms of their solutions.
"""

from __future__ import annotations

import numpy as np
import pytest
from progress_lines import parsed_lines
from scipy.sparse.linalg import aslinearoperator, lsmr, lsqr

from polarmap import CodedOperator
from polarmap.errors import ModelError
from polarmap.glm import LeastSquares, Ridge
from polarmap.models.iteration_log import IterationLog
from polarmap.models.solvers.least_squares import BidiagonalizationMonitor
from polarmap.testing import ReplayExecutor

SOLVERS = {
    "lsqr": lambda A, b, steps: lsqr(A, b, iter_lim=steps, atol=0, btol=0),
    "lsmr": lambda A, b, steps: lsmr(A, b, maxiter=steps, atol=0, btol=0),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_iteration_is_logged(solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((40, 9)), rng.standard_normal(40)
    progress = IterationLog("fit", CodedOperator(A), verbose=1)
    monitor = BidiagonalizationMonitor(aslinearoperator(A), b, solver, progress)
    returned = SOLVERS[solver](monitor, b, 7)
    np.testing.assert_array_equal(returned[0], SOLVERS[solver](A, b, 7)[0])
    solution, residual = monitor.make_solution(), b - A @ SOLVERS["lsqr"](A, b, 7)[0]
    np.testing.assert_allclose(solution.x, SOLVERS["lsqr"](A, b, 7)[0], rtol=1e-6)
    assert solution.objective == pytest.approx(residual @ residual)
    assert solution.optimality == pytest.approx(np.linalg.norm(2 * A.T @ residual), rel=1e-2)
    lines = parsed_lines(capsys.readouterr().out)
    assert len(lines) == returned[2] == 7
    for steps, line in enumerate(lines, 1):
        residual = b - A @ SOLVERS[solver](A, b, steps)[0]
        assert line["gradient"] == pytest.approx(np.linalg.norm(2 * A.T @ residual), rel=1e-2)
        if solver == "lsqr":
            assert line["objective"] == pytest.approx(residual @ residual, rel=1e-6)


def test_dependent_features_are_named() -> None:
    X = np.random.default_rng(0).standard_normal((50, 3))
    X = np.column_stack([X, X.sum(axis=1) + 1e-14 * X[:, 0] ** 2])
    with pytest.raises(
        ModelError, match=r"linearly dependent, or nearly so: the condition number .* exceeds 1e\+12"
    ):
        LeastSquares(tol=0.0, blocks=4, executor=ReplayExecutor()).fit(X, X[:, 0] ** 2)


@pytest.mark.parametrize("solver", ["lsqr", "lsmr", "cg"])
@pytest.mark.parametrize("spread", [0.0, 4.0, 9.0])
def test_copied_and_small_features_do_not_prevent_the_best_fit(solver: str, spread: float) -> None:
    # Directions that a Gram matrix resolves are whitened. The solver handles the remaining ones unchanged.
    rng = np.random.default_rng(0)
    left, right = (
        np.linalg.qr(rng.standard_normal((80, 12)))[0],
        np.linalg.qr(rng.standard_normal((12, 12)))[0],
    )
    X, y = left * np.logspace(0, -spread, 12) @ right, rng.standard_normal(80)
    X = np.hstack([X, X[:, :5]]) if not spread else X
    model = Ridge(0.0, solver=solver, fit_intercept=False, blocks=4, executor=ReplayExecutor()).fit(X, y)
    best = np.linalg.norm(y - left @ (left.T @ y))
    assert np.linalg.norm(y - model.predict(X)) == pytest.approx(best, rel=1e-6)
    assert model.n_iter_ < 40


@pytest.mark.parametrize("solver", ["lsqr", "lsmr", "cg"])
def test_max_iter_may_be_a_float(solver: str) -> None:
    X = np.random.default_rng(0).standard_normal((40, 3))
    model = Ridge(solver=solver, max_iter=2.5, blocks=2, executor=ReplayExecutor()).fit(X, X[:, 0])
    assert 1 <= model.n_iter_ <= 3
