"""Penalties and constraints as those of pyproximal, but with conjugates, or exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import qr, solve_triangular

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import ModelError

MAX_NEWTON_STEPS = 100  # of the secular equation, which takes about six


class ElasticNetPenalty:
    """sum(l1 |x| + l2 x^2 / 2), with its convex conjugate, by which `fista` knows the duality gap.

    Parameters
    ----------
    l1, l2 : float or (N,)
        0 or more.

    Examples
    --------
    >>> ElasticNetPenalty(1.0, 1.0).prox(np.array([3.0, -0.5]), 1.0).tolist()
    [1.0, -0.0]
    """

    def __init__(self, l1: Any, l2: Any = 0.0) -> None:
        self._l1, self._l2 = np.asarray(l1, dtype=np.float64), np.asarray(l2, dtype=np.float64)
        if not (self._l1 >= 0).all() or not (self._l2 >= 0).all():
            raise ModelError(f"l1 and l2 must be 0 or more, not {l1!r} and {l2!r}")

    def __call__(self, x: Floats) -> float:
        """At x (N,)."""
        return float(np.sum(self._l1 * np.abs(x) + self._l2 * x**2 / 2))

    def prox(self, x: Floats, tau: float) -> Floats:
        """The p that minimizes tau times the penalty, + |p - x|^2 / 2."""
        thresholded = np.copysign(np.maximum(np.abs(x) - tau * self._l1, 0.0), x)
        return np.asarray(thresholded / (1.0 + tau * self._l2))

    def conjugate(self, dual: Floats) -> float:
        """max over x of <v, x> minus the penalty; v as `dual_scale` has scaled it."""
        l1, l2 = np.broadcast_to(self._l1, dual.shape), np.broadcast_to(self._l2, dual.shape)
        has_l2_mask = l2 > 0
        excess = np.maximum(np.abs(dual[has_l2_mask]) - l1[has_l2_mask], 0.0)
        return float(np.sum(excess**2 / (2 * l2[has_l2_mask])))

    def dual_scale(self, dual: Floats) -> float:
        """The largest factor up to 1 by which v gets a finite conjugate."""
        bound, magnitude = np.broadcast_to(self._l1, dual.shape), np.abs(dual)
        violated_mask = (np.broadcast_to(self._l2, dual.shape) == 0) & (magnitude > bound)
        return float(np.min(bound[violated_mask] / magnitude[violated_mask], initial=1.0))


class LinearBoxPenalty:
    """<slope, x> where lower <= x <= upper, infinite elsewhere, with its convex conjugate.

    Parameters
    ----------
    lower, upper, slope : (N,)
        Bounds are finite. Attributes, too.

    Examples
    --------
    >>> penalty = LinearBoxPenalty(np.zeros(2), np.ones(2), np.array([1.0, -1.0]))
    >>> penalty.prox(np.array([0.5, 0.5]), 1.0).tolist()
    [0.0, 1.0]
    """

    def __init__(self, lower: Floats, upper: Floats, slope: Floats) -> None:
        self.lower, self.upper = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
        self.slope = np.asarray(slope, dtype=np.float64)
        is_bounded = np.isfinite(self.lower).all() and np.isfinite(self.upper).all()
        if not is_bounded or (self.lower > self.upper).any():
            raise ModelError(
                "bounds must be finite, and none of lower above that of upper: pyproximal.Box may be open"
            )

    def __call__(self, x: Floats) -> float:
        """At an x (N,) within the box."""
        return float(self.slope @ x)

    def prox(self, x: Floats, tau: float) -> Floats:
        """The p in the box that minimizes tau <slope, p> + |p - x|^2 / 2."""
        return np.clip(x - tau * self.slope, self.lower, self.upper)

    def conjugate(self, dual: Floats) -> float:
        """max over x of <v, x> minus the penalty."""
        reduced_dual = dual - self.slope
        return float(np.sum(np.maximum(reduced_dual * self.lower, reduced_dual * self.upper)))

    def dual_scale(self, dual: Floats) -> float:
        """1: every v has a finite conjugate."""
        return 1.0


class GroupLassoPenalty:
    """strength * sum over columns j of |scale x_j|, for x (rows, columns) row by row, with its conjugate.

    As pyproximal.L21, but a scale for each row: the coordinates in which `fista` takes its steps need not be
    those whose norm is penalized.

    >>> GroupLassoPenalty(1.0, np.ones(2), 2).prox(np.array([3.0, 0.5, 4.0, 0.5]), 1.0).round(6).tolist()
    [2.4, 0.0, 3.2, 0.0]
    """

    def __init__(self, strength: float, row_scale: Floats, n_columns: int) -> None:
        if not strength >= 0 or not (np.asarray(row_scale) > 0).all():
            raise ModelError(f"strength must be 0 or more, not {strength!r}, and each scale positive")
        self._strength, self._row_scale, self._n_columns = strength, np.reshape(row_scale, (-1, 1)), n_columns

    def __call__(self, x: Floats) -> float:
        """At x (rows * columns,)."""
        scaled = self._row_scale * self._reshape_to_matrix(x)
        return float(self._strength * np.linalg.norm(scaled, axis=0).sum())

    def prox(self, x: Floats, tau: float) -> Floats:
        """The p that minimizes tau times the penalty, + |p - x|^2 / 2."""
        z, threshold = self._reshape_to_matrix(x), tau * self._strength
        if threshold == 0:
            return np.array(x, dtype=np.float64)
        p = np.zeros_like(z)
        active_mask = np.linalg.norm(z / self._row_scale, axis=0) > threshold
        poles = threshold * self._row_scale**2
        norms = _solve_secular_equations((self._row_scale * z[:, active_mask]) ** 2, poles)
        p[:, active_mask] = z[:, active_mask] * (norms / (norms + poles))
        return p.reshape(-1)

    def conjugate(self, dual: Floats) -> float:
        """0: v is one that `dual_scale` has scaled into the dual ball."""
        return 0.0

    def dual_scale(self, dual: Floats) -> float:
        """The largest factor up to 1 by which v gets a finite conjugate."""
        scaled = self._reshape_to_matrix(dual) / self._row_scale
        max_norm = float(np.linalg.norm(scaled, axis=0).max(initial=0.0))
        return min(1.0, self._strength / max_norm) if max_norm > 0 else 1.0

    def _reshape_to_matrix(self, x: Floats) -> Floats:
        return np.reshape(x, (-1, self._n_columns))


class AffineSet:
    """C x = d as a constraint, by a QR factorization: exact, where that of pyproximal is iterative.

    Parameters
    ----------
    C : (equations, N)
        Of full row rank.
    d : (equations,)

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
        Q, R, pivots = qr(C.T, mode="economic", pivoting=True)
        diagonal = np.abs(np.diag(R))
        rank = int((diagonal > max(C.shape) * FLOAT64_EPS * diagonal.max(initial=0.0)).sum())
        if rank < len(d):
            raise ModelError(
                f"the {len(d)} equations have rank {rank}: leave out {len(d) - rank} that depend on others"
            )
        self._Q, self._rhs = Q, solve_triangular(R, d[pivots], trans="T")

    def __call__(self, x: Floats) -> bool:
        """Whether x satisfies the equations, up to rounding."""
        magnitude = max(1.0, float(np.abs(x).max(initial=0.0)), float(np.abs(self._rhs).max(initial=0.0)))
        return bool(np.abs(self._Q.T @ x - self._rhs).max(initial=0.0) <= 1e-10 * magnitude)

    def prox(self, x: Floats, tau: float) -> Floats:
        """The nearest point of the set."""
        return np.asarray(x - self._Q @ (self._Q.T @ x - self._rhs))


def _solve_secular_equations(numerators: Floats, poles: Floats) -> Floats:
    """For each column the r > 0 with sum_k squares_k / (r + pulls_k)^2 = 1, where the sum is over 1 at r = 0.

    By Newton's method on 1 / sqrt(sum) - 1, as for trust regions (More and Sorensen, 1983).
    """
    roots: Floats = np.zeros(numerators.shape[1])
    for _ in range(MAX_NEWTON_STEPS):
        shifted = roots + poles
        terms = numerators / shifted**2
        total = terms.sum(axis=0)
        step = (np.sqrt(total) - 1.0) * total / (terms / shifted).sum(axis=0)
        roots = np.maximum(roots + step, 0.0)
        if (np.abs(step) <= 4 * FLOAT64_EPS * roots).all():
            break
    return roots
