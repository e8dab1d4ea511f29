"""What the models of polarmap.glm share: scaled features as coded products, and scipy's solvers."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.errors import ModelError
from polarmap.executors.faulty import FaultyExecutor
from polarmap.glm.losses import Loss, Objective, typical_curvature
from polarmap.linalg.operators import CodedOperator

try:
    from scipy.optimize import minimize
    from scipy.sparse.linalg import LinearOperator, cg, lsmr, lsqr
    from sklearn.base import BaseEstimator, clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("polarmap.glm needs scipy and scikit-learn: pip install 'polarmap[glm]'") from error

Floats = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
MINIMIZERS = {"lbfgs": "L-BFGS-B", "trust-ncg": "trust-ncg", "trust-krylov": "trust-krylov"}
MOST_CONDITION = 1e12  # of scaled features, above which least squares have no digits left


class CodedModel(BaseEstimator):  # type: ignore[misc]
    """What the estimators share: standardized features as a CodedOperator, and what sklearn asks for."""

    def _operator(self, A: Floats) -> CodedOperator:
        if isinstance(self.executor, LeftBehind):
            raise ModelError(
                f"the executor of this model, a {self.executor.name}, stayed behind when the model was "
                "pickled or copied, as n_jobs=2 does: it can predict, but not fit. Use n_jobs=1 (the maps of "
                "a fit are parallel already), or an executor that travels ('localhost', the path of a "
                "Lithops YAML file), or give it one with set_params(executor=...)"
            )
        options = {name: getattr(self, name) for name in ("blocks", "workers", "code", "executor", "timeout")}
        return CodedOperator(A, **options)

    def _scaled(self, X: Floats, penalty: float, curvature: float = 1.0) -> tuple[Floats, Floats, Floats]:
        """A = (X - mean) * scale, by which the Hessian of the mean loss has about 1 on its diagonal.

        Solvers converge on A as they do on well-scaled data; the model is that of X. Without an
        intercept, mean is 0.
        """
        mean = X.mean(axis=0) if self.fit_intercept else np.zeros(X.shape[1])
        A = X - mean
        square = np.mean(A**2, axis=0)
        constant = square <= (10 * EPS * mean) ** 2
        A[:, constant], square[constant] = 0.0, 0.0
        diagonal = curvature * square + penalty
        scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        A *= scale
        return A, mean, scale

    def _check_numbers(self, **least: float) -> None:
        for name, bound in least.items():
            value = getattr(self, name)
            is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not is_number or not value >= bound:
                raise ModelError(f"{name} must be a number, {bound:g} or more, not {value!r}")

    def _check_solver(self, solvers: Any) -> None:
        if self.solver not in solvers:
            raise ModelError(f"solver must be one of {', '.join(sorted(solvers))}, not {self.solver!r}")

    def _linear(self, X: Any) -> Floats:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def __sklearn_clone__(self) -> Any:
        """A clone shares the executor: pools cannot be copied."""
        options = self.get_params(deep=False)
        executor = options.pop("executor")
        copies = {name: clone(value, safe=False) for name, value in options.items()}
        return type(self)(**copies, executor=executor)

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model has its executor only if that is a name: pools do not travel."""
        state = dict(super().__getstate__())
        state["executor"] = _travelling(state["executor"])
        return state


class LeftBehind:
    """In the place of an executor that could not be pickled along with a model.

    >>> LeftBehind("ThreadPoolExecutor")
    <ThreadPoolExecutor, left behind>
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, left behind>"


def _travelling(executor: Any) -> Any:
    """An executor as it is pickled."""
    if isinstance(executor, FaultyExecutor):
        inner = _travelling(executor.executor)
        return inner if isinstance(inner, LeftBehind) else executor
    if executor is None or isinstance(executor, (str, os.PathLike, LeftBehind)):
        return executor
    return LeftBehind(type(executor).__name__)


class Penalized(LinearOperator):  # type: ignore[misc]
    """[A; diag(root)]: rows below A for the penalty of each feature; A alone if there is none."""

    def __init__(self, A: Any, root: Floats) -> None:
        self._A, self._root = A, root if root.any() else np.zeros(0)
        super().__init__(np.float64, (A.shape[0] + len(self._root), A.shape[1]))

    def _matvec(self, v: Floats) -> Floats:
        v = np.reshape(v, -1)
        below = self._root * v if len(self._root) else self._root
        return np.concatenate([self._A.matvec(v), below])

    def _rmatvec(self, u: Floats) -> Floats:
        u = np.reshape(u, -1)
        above, below = u[: self._A.shape[0]], u[self._A.shape[0] :]
        product = self._A.rmatvec(above)
        return np.asarray(product + self._root * below if len(self._root) else product)


def solve(model: Any, system: Penalized, target: Floats) -> tuple[Floats, int]:
    """The least squares solution v and the number of iterations."""
    if model.solver == "cg":
        return _solve_normal_equations(model, system, target)
    right = np.concatenate([target, np.zeros(system.shape[0] - len(target))])
    options = {"atol": model.tol, "btol": model.tol, "conlim": MOST_CONDITION}
    if model.solver == "lsqr":
        v, stop, n_iter, *_ = lsqr(system, right, iter_lim=model.max_iter, **options)
    else:
        v, stop, n_iter, *_ = lsmr(system, right, maxiter=model.max_iter, **options)
    if stop in (3, 6):
        raise ModelError(
            f"the features depend on each other: the condition number of the system exceeds "
            f"{MOST_CONDITION:.0e}, so its solution has no digits; drop features or raise alpha"
        )
    _warn_if_not_converged(stop != 7, model.max_iter)
    return np.asarray(v), max(1, int(n_iter))


def _solve_normal_equations(model: Any, system: Penalized, target: Floats) -> tuple[Floats, int]:
    steps: list[None] = []
    right = np.concatenate([target, np.zeros(system.shape[0] - len(target))])
    normal = LinearOperator(
        (system.shape[1],) * 2, matvec=lambda v: system.rmatvec(system.matvec(v)), dtype=np.float64
    )
    v, stop = cg(
        normal,
        system.rmatvec(right),
        rtol=model.tol,
        maxiter=model.max_iter,
        callback=lambda _: steps.append(None),
    )
    _warn_if_not_converged(stop == 0, model.max_iter)
    return np.asarray(v), max(1, len(steps))


def minimized(model: Any, X: Floats, y: Floats, loss: Loss, penalty: float) -> tuple[Floats, Floats]:
    """Coefficients (outputs, features) and intercepts (outputs,) by scipy; sets n_iter_ and report_."""
    model._check_numbers(tol=0.0, max_iter=1)
    model._check_solver(MINIMIZERS)
    curvature = typical_curvature(loss, y)
    A, mean, scale = model._scaled(X, penalty, curvature)
    unit = 1.0 / np.sqrt(curvature) if model.fit_intercept else 0.0
    with model._operator(A) as operator:
        objective = Objective(operator, y, loss, penalty * scale**2, unit)
        options = _options(model, objective.start_value())
        hessp = None if model.solver == "lbfgs" else objective.hessian_product
        with np.errstate(invalid="ignore"):  # of trlib
            found = minimize(
                objective.value_and_gradient,
                objective.start(),
                method=MINIMIZERS[model.solver],
                jac=True,
                hessp=hessp,
                options=options,
            )
        model.report_ = operator.report
    V, b = objective.split(found.x)
    model.n_iter_ = max(1, int(found.nit))
    is_flat = np.abs(found.jac).max(initial=0.0) <= 10 * max(model.tol, _flat(found.fun))
    _warn_if_not_converged(found.status == 0 or bool(is_flat), model.max_iter, found.message)
    coef = V.T * scale
    return coef, b - coef @ mean if model.fit_intercept else b


def _options(model: Any, value: float) -> dict[str, Any]:
    options: dict[str, Any] = {"gtol": model.tol, "maxiter": model.max_iter}
    if model.solver == "lbfgs":
        return options | {"ftol": 4 * EPS, "maxls": 50, "maxfun": 50 * model.max_iter}
    # Closer, trust regions compare values that differ by rounding, and trlib meets NaN.
    return options | {"gtol": max(model.tol, _flat(value))}


def _flat(value: float) -> float:
    """The gradient g at which a step lowers the value, by about g^2 / 2, no more than 16 roundings do.

    That is where the Hessian has about 1 on its diagonal.
    """
    return float(np.sqrt(32 * EPS * max(1.0, abs(value))))


def _warn_if_not_converged(converged: bool, max_iter: int, message: str = "") -> None:
    if not converged:
        warnings.warn(
            f"the solver has not converged within max_iter={max_iter} iterations, or can get no closer"
            f"{': ' + message if message else ''}; raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=4,
        )
