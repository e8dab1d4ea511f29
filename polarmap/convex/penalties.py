"""Penalties and constraints that pyproximal lacks, or has with too few digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyproximal
from scipy.linalg import qr, solve_triangular

from polarmap.errors import ModelError

Floats = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
BISECTIONS = 1000  # of pyproximal at most: enough for any float64


class ElasticNetPenalty:
    """sum(l1 |x| + l2 x^2 / 2), with its convex conjugate, by which `fista` knows the duality gap.

    Parameters
    ----------
    l1, l2 : float or (N,)
        0 or more.

    Raises
    ------
    ModelError
        Negative strengths.

    Examples
    --------
    >>> ElasticNetPenalty(1.0, 1.0).prox(np.array([3.0, -0.5]), 1.0).tolist()
    [1.0, -0.0]
    """

    def __init__(self, l1: Any, l2: Any = 0.0) -> None:
        self._l1, self._l2 = np.asarray(l1, dtype=np.float64), np.asarray(l2, dtype=np.float64)
        if not (self._l1 >= 0).all() or not (self._l2 >= 0).all():
            raise ModelError(f"l1 and l2 must be 0 or more, not {l1!r} and {l2!r}")
        self._norm = pyproximal.L1(self._l1)

    def __call__(self, x: Floats) -> float:
        """At x (N,)."""
        return float(self._norm(x) + np.sum(self._l2 * x**2) / 2)

    def prox(self, x: Floats, tau: float) -> Floats:
        """The p that minimizes tau times the penalty, + |p - x|^2 / 2."""
        return np.asarray(self._norm.prox(x, tau) / (1.0 + tau * self._l2))

    def conjugate(self, v: Floats) -> float:
        """max over x of <v, x> minus the penalty; v as `dual_scale` has scaled it."""
        l1, l2 = np.broadcast_to(self._l1, v.shape), np.broadcast_to(self._l2, v.shape)
        curved = l2 > 0
        beyond = np.maximum(np.abs(v[curved]) - l1[curved], 0.0)
        return float(np.sum(beyond**2 / (2 * l2[curved])))

    def dual_scale(self, v: Floats) -> float:
        """The largest factor up to 1 by which v gets a finite conjugate."""
        bound, size = np.broadcast_to(self._l1, v.shape), np.abs(v)
        over = (np.broadcast_to(self._l2, v.shape) == 0) & (size > bound)
        return float(np.min(bound[over] / size[over], initial=1.0))


class LinearOnBox:
    """<slope, x> where lower <= x <= upper, infinite elsewhere, with its convex conjugate.

    Parameters
    ----------
    lower, upper, slope : (N,)

    Raises
    ------
    ModelError
        A bound that is NaN or infinite; a lower bound above the upper one.

    Examples
    --------
    >>> LinearOnBox(np.zeros(2), np.ones(2), np.array([1.0, -1.0])).prox(np.array([0.5, 0.5]), 1.0).tolist()
    [0.0, 1.0]
    """

    def __init__(self, lower: Floats, upper: Floats, slope: Floats) -> None:
        self._lower, self._upper = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
        self._slope = np.asarray(slope, dtype=np.float64)
        bounded = np.isfinite(self._lower).all() and np.isfinite(self._upper).all()
        if not bounded or (self._lower > self._upper).any():
            raise ModelError(
                "bounds must be finite, and none of lower above that of upper: pyproximal.Box may be open"
            )
        self._box = pyproximal.Box(self._lower, self._upper)

    def __call__(self, x: Floats) -> float:
        """At an x (N,) within the box."""
        return float(self._slope @ x)

    def prox(self, x: Floats, tau: float) -> Floats:
        """The p in the box that minimizes tau <slope, p> + |p - x|^2 / 2."""
        return np.asarray(self._box.prox(x - tau * self._slope, tau))

    def conjugate(self, v: Floats) -> float:
        """max over x of <v, x> minus the penalty."""
        left = v - self._slope
        return float(np.sum(np.maximum(left * self._lower, left * self._upper)))

    def dual_scale(self, v: Floats) -> float:
        """1: every v has a finite conjugate."""
        return 1.0


class AffineSet:
    """C x = d as a constraint, by a QR factorization: exact, where that of pyproximal is iterative.

    Parameters
    ----------
    C : (equations, N)
        Of full row rank.
    d : (equations,)

    Raises
    ------
    ModelError
        Shapes that do not match; equations that depend on each other.

    Examples
    --------
    >>> AffineSet([[1.0, 1.0]], [1.0]).prox(np.zeros(2), 1.0).round(12).tolist()
    [0.5, 0.5]
    """

    def __init__(self, C: Any, d: Any) -> None:
        C, d = np.asarray(C, dtype=np.float64), np.asarray(d, dtype=np.float64)
        if C.ndim != 2 or d.shape != C.shape[:1] or not (np.isfinite(C).all() and np.isfinite(d).all()):
            raise ModelError(
                f"C must be finite (equations, N) and d (equations,), not of shapes {C.shape} and {d.shape}"
            )
        Q, R, order = qr(C.T, mode="economic", pivoting=True)
        diagonal = np.abs(np.diag(R))
        rank = int((diagonal > max(C.shape) * EPS * diagonal.max(initial=0.0)).sum())
        if rank < len(d):
            raise ModelError(
                f"the {len(d)} equations have rank {rank}: leave out {len(d) - rank} that depend on others"
            )
        self._Q, self._right = Q, solve_triangular(R, d[order], trans="T")

    def __call__(self, x: Floats) -> bool:
        """Whether x satisfies the equations, up to rounding."""
        size = max(1.0, float(np.abs(x).max(initial=0.0)), float(np.abs(self._right).max(initial=0.0)))
        return bool(np.abs(self._Q.T @ x - self._right).max(initial=0.0) <= 1e-10 * size)

    def prox(self, x: Floats, tau: float) -> Floats:
        """The nearest point of the set."""
        return np.asarray(x - self._Q @ (self._Q.T @ x - self._right))


def simplex(size: int, total: float = 1.0) -> Any:
    """x >= 0 of that size with sum(x) = total: pyproximal.Simplex, to rounding.

    Raises
    ------
    ModelError
        A size below 1, a total that is not positive.

    Examples
    --------
    >>> simplex(3).prox(np.array([1.0, 1.0, -1.0]), 1.0).round(12).tolist()
    [0.5, 0.5, 0.0]
    """
    _check_sizes(size, total=total)
    return pyproximal.Simplex(size, total, maxiter=BISECTIONS, xtol=EPS * total)


def l1_ball(size: int, radius: float) -> Any:
    """x of that size with sum(|x|) <= radius: pyproximal.L1Ball, to rounding.

    Raises
    ------
    ModelError
        A size below 1, a radius that is not positive.

    Examples
    --------
    >>> l1_ball(2, 1.0).prox(np.array([2.0, 1.0]), 1.0).round(12).tolist()
    [1.0, 0.0]
    """
    _check_sizes(size, radius=radius)
    return pyproximal.L1Ball(size, radius, maxiter=BISECTIONS, xtol=EPS * radius)


def _check_sizes(size: int, **positive: float) -> None:
    if size != int(size) or size < 1:
        raise ModelError(f"size must be a whole number, 1 or more, not {size!r}")
    for name, value in positive.items():
        if not 0 < value < np.inf:
            raise ModelError(f"{name} must be a positive number, not {value!r}")
