"""Proximal gradient steps with momentum, two coded products an iteration, and the models that they fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np

from polarmap.code.dtypes import EPS, Floats
from polarmap.errors import ModelError
from polarmap.linalg.operators import CodedOperator
from polarmap.models.coded_model import CodedModel
from polarmap.models.fit_progress import FitProgress, warn_if_not_converged

LOOK_EVERY = 10  # iterations, at whose end the gap is looked at, for one product more
GROWTH = 1.2  # of the curvature, at least, where a step was too long
ROUNDED = 1e-10  # relative to the loss: a smaller difference of values has too few digits
STRAIGHT = 1e-3  # of eta: a step along which a loss is as good as quadratic


class Solution(NamedTuple):
    """What `fista` has found.

    Attributes
    ----------
    x : (N,) or (N, outputs)
    objective : float
        loss(A x) + penalty(x).
    gap : float or None
        To a point of the dual problem: the objective is at most that far above its minimum. None where loss
        or penalty has no conjugate.
    gradient_map : float
        Norm of the gradient map L (x - prox(x - gradient / L)), 0 at a minimum: the residual of the
        optimality conditions (KKT).
    n_iter : int
    converged : bool
    """

    x: Floats
    objective: float
    gap: float | None
    gradient_map: float
    n_iter: int
    converged: bool


def fista(
    operator: Any,
    loss: Any,
    penalty: Any,
    start: Any = None,
    *,
    tol: float = 1e-6,
    max_iter: int = 5000,
    callback: Callable[[float, float], None] | None = None,
) -> Solution:
    """Minimize loss(A x) + penalty(x) by FISTA with restarts and backtracking.

    An iteration is two products, A x and A' u, and one more where its step was too long, which happens a
    few times in all, or where the gap is looked at, every tenth time. Steps: Beck and Teboulle, 2009;
    restarts where momentum points uphill: O'Donoghue and Candes, 2015.

    Parameters
    ----------
    operator : LinearOperator (M, N)
        A: a `CodedOperator`, or anything with matvec, rmatvec, matmat, rmatmat and shape.
    loss
        value(eta) and gradient(eta) of eta = A x, convex and smooth: `SquaredLoss`, `LogisticLoss`. Its
        conjugate(u), if it has one, gives the duality gap.
    penalty
        Of pyproximal (`L1`, `L21`, `Box`, `EuclideanBall`, ...) or this module: prox(x, tau) of a vector,
        and as a call its value, or for a constraint whether it holds. Conjugates as for a loss.
    start : (N,) or (N, outputs), optional
        Zeros (N,) by default. The penalty is asked about its rows, one after the other.
    tol : float
        Relative: of the gap to the objective; where there is no gap, or it is below rounding, of the
        gradient map to the largest one met.
    max_iter : int
    callback : callable, optional
        Called with the objective and the norm of the gradient map after each iteration.

    Returns
    -------
    Solution

    Raises
    ------
    ModelError
        Shapes that do not match; a loss, penalty, tol or max_iter that cannot be.

    Examples
    --------
    >>> import pyproximal
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from polarmap import CodedOperator
    >>> from polarmap.convex import SquaredLoss
    >>> A, b = np.eye(4), np.array([3.0, -2.0, 1.0, 0.0])
    >>> with ThreadPoolExecutor(4) as pool, CodedOperator(A, blocks=2, executor=pool) as operator:
    ...     found = fista(operator, SquaredLoss(b), pyproximal.Box(lower=0.0))  # nonnegative least squares
    >>> found.x.round(6).tolist(), round(found.objective, 6), found.converged
    ([3.0, 0.0, 1.0, 0.0], 2.0, True)
    """
    _check(penalty, loss, tol, max_iter)
    problem = _Problem(operator, loss, penalty)
    return after_steps(_FistaSteps(problem, problem.checked_start(start)), tol, max_iter, callback)


def after_steps(
    steps: Any, tol: float, max_iter: int, callback: Callable[[float, float], None] | None
) -> Solution:
    """What a method finds in `max_iter` steps, or as few as it takes; the callback is told of each."""
    while steps.count < max_iter:
        steps.step()
        if callback is not None:
            callback(steps.objective, steps.map_norm)
        if steps.has_converged(tol):
            break
    found: Solution = steps.solution(tol)
    return found


@dataclass(eq=False, repr=False)
class ProximalModel(CodedModel):
    """A model whose coefficients minimize a smooth loss plus a penalty or a constraint."""

    _: KW_ONLY
    tol: float = 1e-6
    max_iter: int = 5000

    def _solve(
        self,
        coded: CodedOperator,
        operator: Any,
        loss: Any,
        penalty: Any,
        start: Floats,
        minimize: Callable[..., Solution] = fista,
    ) -> Floats:
        """The minimum; sets n_iter_, objective_, dual_gap_, gradient_map_ and report_.

        coded : whose products those of `operator` are made of.
        minimize : called as `fista` is.
        """
        progress = FitProgress(type(self).__name__, coded, self.verbose)
        found = minimize(
            operator,
            loss,
            penalty,
            start,
            tol=self.tol,
            max_iter=self.max_iter,
            callback=progress.iteration if progress else None,
        )
        warn_if_not_converged(found.converged, self.max_iter)
        self.n_iter_, self.objective_ = found.n_iter, found.objective
        self.dual_gap_, self.gradient_map_ = found.gap, found.gradient_map
        self.report_ = coded.report
        return found.x


class _Problem:
    """loss(A x) + penalty(x), whose products with A are counted nowhere but in the operator."""

    def __init__(self, operator: Any, loss: Any, penalty: Any) -> None:
        self.loss, self._penalty, self._operator = loss, penalty, operator
        self.has_gap = hasattr(loss, "conjugate") and hasattr(penalty, "conjugate")

    def checked_start(self, start: Any) -> Floats:
        """A copy of the start as floats, or zeros."""
        size = int(self._operator.shape[1])
        x = np.zeros(size) if start is None else np.array(start, dtype=np.float64)
        if x.ndim not in (1, 2) or len(x) != size:
            raise ModelError(f"start must be of shape ({size},) or ({size}, outputs), not {x.shape}")
        return x

    def forward(self, x: Floats) -> Floats:
        """A x, of the shape that the loss has; no product for zeros."""
        if not x.any():
            return np.zeros((int(self._operator.shape[0]), *x.shape[1:]))
        return np.asarray(self._operator.matvec(x) if x.ndim == 1 else self._operator.matmat(x))

    def check_shape(self, eta: Floats) -> None:
        """ModelError where y of the loss has another shape, which numpy may yet broadcast."""
        shape = getattr(self.loss, "shape", eta.shape)
        if shape != eta.shape:
            raise ModelError(
                f"A x is of shape {eta.shape}, and y of the loss of shape {shape}: for an operator with "
                f"{len(eta)} rows, y is ({len(eta)},); for several columns of y, start has as many"
            )

    def backward(self, u: Floats) -> Floats:
        """A' u: the gradient, for that of the loss."""
        return np.asarray(self._operator.rmatvec(u) if u.ndim == 1 else self._operator.rmatmat(u))

    def prox(self, x: Floats, tau: float) -> Floats:
        """That of the penalty, in the shape of x."""
        return np.asarray(self._penalty.prox(x.reshape(-1), tau)).reshape(x.shape)

    def objective(self, x: Floats, eta: Floats) -> float:
        """The objective at an x that comes from `prox`, by which constraints hold."""
        penalty = self._penalty(x.reshape(-1))
        holds = isinstance(penalty, (bool, np.bool_))  # a constraint
        return float(self.loss.value(eta)) + (0.0 if holds else float(penalty))

    def gap(self, x: Floats, eta: Floats, u: Floats, gradient: Floats) -> float:
        """To the dual point in the direction of u, the gradient of the loss (Fenchel, Rockafellar)."""
        v = -gradient.reshape(-1)
        scale = float(self._penalty.dual_scale(v))
        if scale == 0.0:
            return math.inf
        dual = float(self.loss.conjugate(scale * u)) + float(self._penalty.conjugate(scale * v))
        return max(0.0, self.objective(x, eta) + dual)


class _FistaSteps:
    """The iteration: where it is, how long its steps are, how far it has to go."""

    def __init__(self, problem: _Problem, x: Floats) -> None:
        self._problem, self.count = problem, 0
        self.x = x
        self.eta = problem.forward(x)
        problem.check_shape(self.eta)
        u = problem.loss.gradient(self.eta)
        self._y, self._y_eta, self._momentum = self.x, self.eta, 1.0
        self._largest_map, self.map_norm = 0.0, math.inf
        self._scale = abs(float(problem.loss.value(self.eta)))
        self._curvature = self._initial_curvature(u)
        self._seen: tuple[int, float, float] | None = None  # count, gap and gradient map at x

    def _initial_curvature(self, u: Floats) -> float:
        """L as it is along the gradient."""
        gradient = self._problem.backward(u)
        direction = self._problem.forward(gradient)
        largest, square = float(np.abs(direction).max(initial=0.0)), float(np.sum(gradient**2))
        if largest == 0.0 or square == 0.0:
            return 1.0
        length = STRAIGHT / largest
        change = self._problem.loss.gradient(self.eta + length * direction) - u
        found = float(np.sum(change * direction)) / (length * square)
        return found if 0.0 < found < math.inf else 1.0

    @property
    def objective(self) -> float:
        """Loss plus penalty where the iteration is."""
        return self._problem.objective(self.x, self.eta)

    def step(self) -> None:
        """From the extrapolated point y to the next x, and where momentum leads from there."""
        u = self._problem.loss.gradient(self._y_eta)
        x, eta = self._shortened_step(u, self._problem.backward(u))
        uphill = float(np.sum((self._y - x) * (x - self.x))) > 0
        before = 1.0 if uphill else self._momentum
        self._momentum = (1.0 + math.sqrt(1.0 + 4.0 * before**2)) / 2.0
        weight = (before - 1.0) / self._momentum
        # Products are linear: that of the extrapolated point costs none.
        self._y, self._y_eta = x + weight * (x - self.x), eta + weight * (eta - self.eta)
        self.x, self.eta, self.count = x, eta, self.count + 1

    def _shortened_step(self, u: Floats, gradient: Floats) -> tuple[Floats, Floats]:
        """The proximal gradient step from y, for an L that bounds the curvature along it."""
        while True:
            x = self._problem.prox(self._y - gradient / self._curvature, 1.0 / self._curvature)
            eta, step = self._problem.forward(x), x - self._y
            square = float(np.sum(step**2))
            curvature = 2.0 * self._bregman(u, eta) / square if square else 0.0
            if curvature <= self._curvature * (1.0 + 1e-6):
                break
            self._curvature = max(GROWTH * self._curvature, curvature)
        self.map_norm = self._curvature * math.sqrt(square)
        self._largest_map = max(self._largest_map, self.map_norm)
        return x, eta

    def _bregman(self, u: Floats, eta: Floats) -> float:
        """The loss at eta less its tangent at y: by values, or by gradients where these have no digits."""
        loss, change = self._problem.loss, eta - self._y_eta
        value = float(loss.value(eta))
        found = value - float(loss.value(self._y_eta)) - float(np.sum(u * change))
        if found > ROUNDED * abs(value):
            return found
        return 0.5 * float(np.sum((loss.gradient(eta) - u) * change))

    def has_converged(self, tol: float) -> bool:
        """By the gap where there is one; it is looked at where it may be small."""
        level = max(tol * self._largest_map, 4 * EPS * self._curvature * float(np.linalg.norm(self.x)))
        is_flat = self.map_norm <= level
        if not self._problem.has_gap:
            return is_flat
        if self.count % LOOK_EVERY and not is_flat:
            return False
        gap, _ = self._look()
        if gap == math.inf:
            return is_flat
        objective = abs(self.objective)
        rounding = 16 * EPS * max(self._scale, objective)
        return gap <= tol * objective if tol * objective >= rounding else gap <= rounding and is_flat

    def _look(self) -> tuple[float, float]:
        """Gap and norm of the gradient map at x, by one product."""
        if self._seen is None or self._seen[0] != self.count:
            u = self._problem.loss.gradient(self.eta)
            gradient = self._problem.backward(u)
            gap = self._problem.gap(self.x, self.eta, u, gradient) if self._problem.has_gap else math.inf
            mapped = self._problem.prox(self.x - gradient / self._curvature, 1.0 / self._curvature)
            self._seen = self.count, gap, self._curvature * float(np.linalg.norm(self.x - mapped))
        return self._seen[1:]

    def solution(self, tol: float) -> Solution:
        """What it has found by now, and how far from the minimum that may be."""
        converged = self.has_converged(tol)
        gap, gradient_map = self._look()
        return Solution(
            self.x, self.objective, None if gap == math.inf else gap, gradient_map, self.count, converged
        )


def _check(penalty: Any, loss: Any, tol: float, max_iter: int) -> None:
    if not callable(penalty) or not hasattr(penalty, "prox"):
        raise ModelError(
            f"penalty must be a proximal operator, such as pyproximal.L1(0.1), not {type(penalty).__name__}"
        )
    if not (hasattr(loss, "value") and hasattr(loss, "gradient")):
        raise ModelError(
            f"loss must have value() and gradient(), as SquaredLoss(y), not {type(loss).__name__}"
        )
    if not 0 <= tol < math.inf:
        raise ModelError(f"tol must be a number, 0 or more, not {tol!r}")
    if max_iter < 1:
        raise ModelError(f"max_iter must be 1 or more, not {max_iter!r}")
