"""Penalized losses minimized by scipy's solvers, each product with the data a coded map."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg

from polarmap.code.dtypes import EPS, Floats
from polarmap.models.coded_model import CodedModel
from polarmap.models.fit_progress import FitProgress, warn_if_not_converged
from polarmap.models.losses import WeightedLoss

NEWTON_STEPS = 2
LOOSE = 1e-6  # a tol above which nobody asks for more digits
SMALL = 1e-3  # a gradient below which Newton's steps can be trusted
MINIMIZERS = {"lbfgs": "L-BFGS-B", "trust-ncg": "trust-ncg", "trust-krylov": "trust-krylov"}


@dataclass(eq=False, repr=False)
class MinimizedModel(CodedModel):
    """A model whose coefficients minimize a smooth penalized loss."""

    _: KW_ONLY
    solver: str = "lbfgs"
    tol: float = 1e-7
    max_iter: int = 500

    def _check_options(self) -> None:
        super()._check_options()
        self._check_choice("solver", MINIMIZERS)

    def _minimize(self, X: Any, loss: WeightedLoss, penalty: float) -> tuple[Floats, Floats]:
        """Coefficients (outputs, features) and intercepts (outputs,); sets n_iter_ and report_.

        loss : with weights of sum 1.
        """
        curvature = loss.null_curvature()
        scaled, mean, scale = self._scaled_operator(X, loss.weights[:, 0], penalty, curvature)
        unit = 1.0 / np.sqrt(curvature) if self.fit_intercept else 0.0
        with scaled as operator:
            progress = FitProgress(type(self).__name__, operator, self.verbose)
            objective = PenalizedLoss(operator, loss, penalty * scale**2, unit, progress)
            found = _minimum(objective, self.solver, self.tol, self.max_iter)
            x = _after_newton_steps(objective, found, self.tol)
            self.report_ = operator.report
        V, b = objective.split(x)
        self.n_iter_ = max(1, int(found.nit))
        is_flat = np.abs(found.jac).max(initial=0.0) <= 10 * max(self.tol, _gradient_rounding(found.fun))
        warn_if_not_converged(found.status == 0 or bool(is_flat), self.max_iter, found.message)
        coef = V.T * scale
        return coef, b - coef @ mean if self.fit_intercept else b


class PenalizedLoss:
    """loss(A V + unit b) + sum(penalty * V^2) / 2, whose products with A are coded maps.

    Parameters
    ----------
    operator : LinearOperator (samples, features)
    loss : WeightedLoss
        Of (samples, outputs).
    penalty : (features,)
        Of each row of V.
    unit : float
        Of b, which is not penalized; 0 if there is none. The argument is V (features, outputs) row by
        row, then b.
    progress : FitProgress, optional
        Of the iterations whose ends `ended` is told.
    """

    def __init__(
        self,
        operator: Any,
        loss: WeightedLoss,
        penalty: Floats,
        unit: float,
        progress: FitProgress | None = None,
    ) -> None:
        self._operator, self._loss, self.progress = operator, loss, progress
        self._penalty, self._unit = penalty[:, np.newaxis], unit
        self._shape = (operator.shape[1], loss.shape[1])
        self._predictors: dict[bytes, Floats] = {}  # predictors of the last points: a Hessian reuses them
        self._seen: dict[bytes, tuple[float, float]] = {}  # since the last iteration, for its line

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Value and gradient of the objective; inf where it would be NaN, which trust regions reject."""
        if not np.isfinite(theta).all():
            return np.inf, np.zeros_like(theta)
        V, _ = self.split(theta)
        eta = self._predictor(theta)
        value = self._loss.value(eta) + 0.5 * float(np.sum(self._penalty * V**2))
        gradient = self._gradient(self._loss.gradient(eta), V)
        if self.progress:
            self._seen[theta.tobytes()] = value, float(np.linalg.norm(gradient))
        return value, gradient

    def ended(self, theta: Floats) -> None:
        """Print what is known of theta, which may also be where the iteration before has ended."""
        key = theta.tobytes()
        self._seen = {key: self._seen[key]}
        if self.progress:
            self.progress.iteration(*self._seen[key])

    def hessian_product(self, theta: Floats, direction: Floats) -> Floats:
        """The Hessian at theta times a direction; NaN for NaN."""
        if not (np.isfinite(theta).all() and np.isfinite(direction).all()):
            return np.full_like(direction, np.nan)
        curved = self._loss.hessian_product(self._predictor(theta), self._linear_predictor(direction))
        return self._gradient(curved, self.split(direction)[0])

    def split(self, theta: Floats) -> tuple[Floats, Floats]:
        """theta as V and unit b."""
        features, outputs = self._shape
        size = features * outputs
        b = self._unit * theta[size:] if self._unit else np.zeros(outputs)
        return theta[:size].reshape(self._shape), b

    def initial_value(self) -> float:
        """The objective at `initial_point`, without a product."""
        b = self._loss.null_predictor() if self._unit else np.zeros(self._shape[1])
        return self._loss.value(np.broadcast_to(b, self._loss.shape))

    def initial_point(self) -> Floats:
        """Where a solver starts: V = 0 and the best b."""
        b = self._loss.null_predictor() / self._unit if self._unit else np.zeros(0)
        return np.concatenate([np.zeros(self._shape[0] * self._shape[1]), b])

    def _predictor(self, theta: Floats) -> Floats:
        key = theta.tobytes()
        if key not in self._predictors:
            if len(self._predictors) > 2:
                del self._predictors[next(iter(self._predictors))]
            self._predictors[key] = self._linear_predictor(theta)
        return self._predictors[key]

    def _linear_predictor(self, theta: Floats) -> Floats:
        """A V + unit b."""
        V, b = self.split(theta)
        return np.asarray(self._operator @ V) + b

    def _gradient(self, residual: Floats, V: Floats) -> Floats:
        """A' residual + penalty * V, and the sum of residuals for b."""
        gradient = self._operator.H @ residual + self._penalty * V
        b = self._unit * residual.sum(axis=0) if self._unit else np.zeros(0)
        return np.concatenate([gradient.reshape(-1), b])


def _minimum(objective: PenalizedLoss, solver: str, tol: float, max_iter: int) -> Any:
    """What scipy finds."""
    with np.errstate(invalid="ignore"):  # of trlib
        return minimize(
            objective.value_and_gradient,
            objective.initial_point(),
            method=MINIMIZERS[solver],
            jac=True,
            hessp=None if solver == "lbfgs" else objective.hessian_product,
            callback=objective.ended if objective.progress else None,
            options=_options(solver, tol, max_iter, objective.initial_value()),
        )


def _options(solver: str, tol: float, max_iter: int, value: float) -> dict[str, Any]:
    """Options of one of scipy's solvers for an objective of about that value."""
    options: dict[str, Any] = {"gtol": tol, "maxiter": max_iter}
    if solver == "lbfgs":
        return options | {"ftol": 4 * EPS, "maxls": 50, "maxfun": 50 * max_iter}
    # Closer, trust regions compare values that differ by rounding, and trlib meets NaN.
    return options | {"gtol": max(tol, _gradient_rounding(value))}


def _gradient_rounding(value: float) -> float:
    """The gradient g at which a step lowers the value, by about g^2 / 2, no more than 16 roundings do.

    That is where the Hessian has about 1 on its diagonal.
    """
    return float(np.sqrt(32 * EPS * max(1.0, abs(value))))


def _after_newton_steps(objective: PenalizedLoss, found: Any, tol: float) -> Floats:
    """The point that scipy found, brought closer than values can tell apart: by gradients alone.

    Where the Hessian is far from the identity, coefficients differ by more than the gradient says.
    """
    x, gradient = found.x, found.jac
    if tol > LOOSE or np.linalg.norm(gradient) > SMALL:
        return np.asarray(x)
    for _ in range(NEWTON_STEPS):
        size = float(np.linalg.norm(gradient))
        if size <= EPS:
            break
        hessian = LinearOperator((len(x),) * 2, partial(objective.hessian_product, x), dtype=np.float64)
        step, _ = cg(hessian, -gradient, rtol=1e-3, maxiter=len(x))
        closer = x + step
        if not np.isfinite(closer).all():
            break
        _, left = objective.value_and_gradient(closer)
        if np.linalg.norm(left) > size / 2:
            break
        x, gradient = closer, left
    return np.asarray(x)
