"""Proximal gradient steps with momentum, two coded products an iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import ModelError

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
        The objective is at most that far above its minimum. None where loss or penalty has no conjugate.
    gradient_map : float
        Norm of the gradient map L (x - prox(x - gradient / L)), 0 at a minimum.
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

    An iteration is two products, A x and A' u, and one more where its step was too long, or where the gap is
    looked at, every tenth time (Beck and Teboulle, 2009; O'Donoghue and Candes, 2015).

    Parameters
    ----------
    operator : LinearOperator (M, N)
        A, such as a `CodedOperator`.
    loss
        value(eta) and gradient(eta) of eta = A x, convex and smooth: `SquaredLoss`, `LogisticLoss`. Its
        conjugate(u), if it has one, gives the duality gap.
    penalty
        Of pyproximal (`L1`, `L21`, `Box`, ...) or this module: prox(x, tau) of a vector, and as a call its
        value, or for a constraint whether it holds. Conjugates as for a loss.
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
    problem = Problem(operator, loss, penalty)
    return after_steps(FistaSteps(problem, problem.checked_start(start)), tol, max_iter, callback)


def after_steps(
    steps: Any, tol: float, max_iter: int, callback: Callable[[float, float], None] | None
) -> Solution:
    """What a method finds in `max_iter` steps, or as few as it takes; the callback is told of each."""
    while steps.count < max_iter:
        steps.step()
        if callback is not None:
            callback(steps.objective, steps.map_norm)
        if steps.has_converged(tol) or steps.is_stuck:
            break
    found: Solution = steps.solution(tol)
    return found


class Problem:
    """loss(A x) + penalty(x), whose products with A are counted nowhere but in the operator."""

    def __init__(self, operator: Any, loss: Any, penalty: Any) -> None:
        self.operator, self.loss, self.penalty = operator, loss, penalty
        self.has_gap = hasattr(loss, "conjugate") and hasattr(penalty, "conjugate")

    def checked_start(self, start: Any) -> Floats:
        """A copy of the start as floats, or zeros."""
        size = int(self.operator.shape[1])
        x = np.zeros(size) if start is None else np.array(start, dtype=np.float64)
        if x.ndim not in (1, 2) or len(x) != size:
            raise ModelError(f"start must be of shape ({size},) or ({size}, outputs), not {x.shape}")
        return x

    def forward(self, x: Floats) -> Floats:
        """A x, of the shape that the loss has; no product for zeros."""
        if not x.any():
            return np.zeros((int(self.operator.shape[0]), *x.shape[1:]))
        return np.asarray(self.operator.matvec(x) if x.ndim == 1 else self.operator.matmat(x))

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
        return np.asarray(self.operator.rmatvec(u) if u.ndim == 1 else self.operator.rmatmat(u))

    def prox(self, x: Floats, tau: float) -> Floats:
        """That of the penalty, in the shape of x."""
        return np.asarray(self.penalty.prox(x.reshape(-1), tau)).reshape(x.shape)

    def objective(self, x: Floats, eta: Floats) -> float:
        """The objective at an x that comes from `prox`, by which constraints hold."""
        return float(self.loss.value(eta)) + penalty_value(self.penalty, x.reshape(-1))

    def gap(self, x: Floats, eta: Floats, u: Floats, gradient: Floats) -> float:
        """To the dual point in the direction of u, the gradient of the loss (Fenchel, Rockafellar)."""
        v = -gradient.reshape(-1)
        scale = float(self.penalty.dual_scale(v))
        if scale == 0.0:
            return math.inf
        dual = float(self.loss.conjugate(scale * u)) + float(self.penalty.conjugate(scale * v))
        return max(0.0, self.objective(x, eta) + dual)


def penalty_value(penalty: Any, x: Floats) -> float:
    """At an x that comes from `prox`: 0 for a constraint, which holds there."""
    value = penalty(x)
    return 0.0 if isinstance(value, (bool, np.bool_)) else float(value)


class ProximalSteps:
    """Where a method is that goes from x to the next x, and how far it has to go."""

    look_every = 1  # iterations, at whose end the gap is looked at

    def __init__(self, problem: Problem, x: Floats) -> None:
        self.problem, self.x, self.count = problem, x, 0
        self.eta = problem.forward(x)
        problem.check_shape(self.eta)
        self.curvature, self.largest_map, self.map_norm = 1.0, 0.0, math.inf
        self._scale = abs(float(problem.loss.value(self.eta)))
        self._derivatives: tuple[int, Floats, Floats] | None = None  # count, and what they are at x
        self.is_stuck = False  # no step gets any closer

    @property
    def objective(self) -> float:
        """Loss plus penalty where the iteration is."""
        return self.problem.objective(self.x, self.eta)

    def derivatives(self) -> tuple[Floats, Floats]:
        """Gradients of the loss at x with respect to eta and to x, by one product."""
        if self._derivatives is None or self._derivatives[0] != self.count:
            u = self.problem.loss.gradient(self.eta)
            self._derivatives = self.count, u, self.problem.backward(u)
        return self._derivatives[1:]

    def gradient_map(self) -> float:
        """Its norm at x."""
        mapped = self.problem.prox(self.x - self.derivatives()[1] / self.curvature, 1.0 / self.curvature)
        return self.curvature * float(np.linalg.norm(self.x - mapped))

    def gap(self) -> float:
        """At x; infinite where it is not known."""
        return self.problem.gap(self.x, self.eta, *self.derivatives()) if self.problem.has_gap else math.inf

    def has_converged(self, tol: float) -> bool:
        """By the gap where there is one; it is looked at where it may be small."""
        is_flat = self.map_norm <= max(tol * self.largest_map, self._rounding_of_map())
        if not self.problem.has_gap or (self.count % self.look_every and not is_flat):
            return is_flat
        gap, objective = self.gap(), abs(self.objective)
        if gap == math.inf:
            return is_flat
        rounding = 16 * FLOAT64_EPS * max(self._scale, objective)
        return gap <= tol * objective if tol * objective >= rounding else gap <= rounding and is_flat

    def _rounding_of_map(self) -> float:
        """What is left of the gradient map where it should be 0."""
        return 4 * FLOAT64_EPS * self.curvature * float(np.linalg.norm(self.x))

    def solution(self, tol: float) -> Solution:
        """What it has found by now, and how far from the minimum that may be."""
        gap, level, objective = self.gap(), self.gradient_map(), self.objective
        # A step would lower the objective by about that.
        is_rounding = level**2 / (2.0 * self.curvature) <= 16 * FLOAT64_EPS * max(self._scale, abs(objective))
        converged = self.has_converged(tol) or (self.is_stuck and is_rounding)
        known = None if gap == math.inf else gap
        return Solution(self.x, objective, known, level, self.count, converged)


class FistaSteps(ProximalSteps):
    """The extrapolated point, and how long steps from there are."""

    look_every = LOOK_EVERY

    def __init__(self, problem: Problem, x: Floats) -> None:
        super().__init__(problem, x)
        self._y, self._y_eta, self._momentum = self.x, self.eta, 1.0
        self.curvature = self._initial_curvature(*self.derivatives())

    def _initial_curvature(self, u: Floats, gradient: Floats) -> float:
        """L as it is along the gradient."""
        direction = self.problem.forward(gradient)
        largest, square = float(np.abs(direction).max(initial=0.0)), float(np.sum(gradient**2))
        if largest == 0.0 or square == 0.0:
            return 1.0
        length = STRAIGHT / largest
        change = self.problem.loss.gradient(self.eta + length * direction) - u
        found = float(np.sum(change * direction)) / (length * square)
        return found if 0.0 < found < math.inf else 1.0

    def step(self) -> None:
        """From the extrapolated point y to the next x, and where momentum leads from there."""
        u = self.problem.loss.gradient(self._y_eta)
        x, eta = self._shortened_step(u, self.problem.backward(u))
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
            x = self.problem.prox(self._y - gradient / self.curvature, 1.0 / self.curvature)
            eta, step = self.problem.forward(x), x - self._y
            square = float(np.sum(step**2))
            curvature = 2.0 * self._bregman(u, eta) / square if square else 0.0
            if curvature <= self.curvature * (1.0 + 1e-6):
                break
            self.curvature = max(GROWTH * self.curvature, curvature)
        self.map_norm = self.curvature * math.sqrt(square)
        self.largest_map = max(self.largest_map, self.map_norm)
        return x, eta

    def _bregman(self, u: Floats, eta: Floats) -> float:
        """The loss at eta less its tangent at y: by values, or by gradients where these have no digits."""
        loss, change = self.problem.loss, eta - self._y_eta
        value = float(loss.value(eta))
        found = value - float(loss.value(self._y_eta)) - float(np.sum(u * change))
        if found > ROUNDED * abs(value):
            return found
        return 0.5 * float(np.sum((loss.gradient(eta) - u) * change))


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
