"""Penalties and constraints with the interface of pyproximal's proximal operators.

For a penalty p, p(x) is its value, and p.prox(x, tau) is its proximal operator. x is always a vector, and
matrices are passed row by row. Unlike the classes of pyproximal, these penalties also have convex conjugates,
from which `fista` computes the duality gap. The projection on an affine set is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import qr, solve_triangular

from polarmap.dtypes import FLOAT64_EPS, Floats
from polarmap.errors import ModelError

# Maximum number of Newton steps for the secular equation, which the proximal operator of the group lasso
# solves. About six steps are usual.
MAX_NEWTON_STEPS = 100


class ElasticNetPenalty:
    """The L1 and L2 penalty of an elastic net, sum(l1 |x| + l2 x^2 / 2).

    Parameters
    ----------
    l1, l2 : float or array (N,)
        Strength of each penalty, for all entries or for each entry of x; 0 or more.

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
        """Return the penalty at x (N,)."""
        return float(np.sum(self._l1 * np.abs(x) + self._l2 * x**2 / 2))

    def prox(self, x: Floats, tau: float) -> Floats:
        """Apply the proximal operator: return the p that minimizes tau * penalty(p) + |p - x|^2 / 2."""
        thresholded = np.copysign(np.maximum(np.abs(x) - tau * self._l1, 0.0), x)
        return np.asarray(thresholded / (1.0 + tau * self._l2))

    def conjugate(self, dual: Floats) -> float:
        """Return the convex conjugate at `dual`: the maximum over x of <dual, x> - penalty(x).

        `dual` must have been multiplied by its `dual_scale`. Otherwise, the maximum may be infinite and the
        result wrong.
        """
        l1, l2 = np.broadcast_to(self._l1, dual.shape), np.broadcast_to(self._l2, dual.shape)
        has_l2_mask = l2 > 0
        excess = np.maximum(np.abs(dual[has_l2_mask]) - l1[has_l2_mask], 0.0)
        return float(np.sum(excess**2 / (2 * l2[has_l2_mask])))

    def dual_scale(self, dual: Floats) -> float:
        """Return the largest factor <= 1 for which the convex conjugate at factor * dual is finite."""
        bound, magnitude = np.broadcast_to(self._l1, dual.shape), np.abs(dual)
        violated_mask = (np.broadcast_to(self._l2, dual.shape) == 0) & (magnitude > bound)
        return float(np.min(bound[violated_mask] / magnitude[violated_mask], initial=1.0))


class LinearBoxPenalty:
    """The linear penalty <slope, x> with the box constraint lower <= x <= upper.

    Parameters
    ----------
    lower, upper : array (N,)
        Finite bounds. Also available as attributes.
    slope : array (N,)
        Coefficients of the linear penalty, also available as an attribute.

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
                "lower and upper must be finite, and lower must not exceed upper. For infinite bounds, "
                "use pyproximal.Box"
            )

    def __call__(self, x: Floats) -> float:
        """Return <slope, x> for a vector x (N,), which must be inside the box."""
        return float(self.slope @ x)

    def prox(self, x: Floats, tau: float) -> Floats:
        """Apply the proximal operator.

        Return the p in the box that minimizes tau * <slope, p> + |p - x|^2 / 2.
        """
        return np.clip(x - tau * self.slope, self.lower, self.upper)

    def conjugate(self, dual: Floats) -> float:
        """Return the convex conjugate at `dual`: the maximum of <dual - slope, x> over the box."""
        reduced_dual = dual - self.slope
        return float(np.sum(np.maximum(reduced_dual * self.lower, reduced_dual * self.upper)))

    def dual_scale(self, dual: Floats) -> float:
        """Return the factor 1, because the convex conjugate is finite for every `dual`."""
        return 1.0


class GroupLassoPenalty:
    """A group lasso penalty on the columns x_j of a matrix x: strength * sum_j |diag(row_scale) x_j|.

    This is pyproximal.L21 with a scale for each row. With these scales, `fista` can optimize whitened
    coefficients, while the penalty is the norm of the original coefficients.

    Parameters
    ----------
    strength : float
        Strength of the penalty, 0 or more.
    row_scale : array (rows,)
        Positive scale of each row.
    n_columns : int
        Number of columns of x. The methods take x as a vector, row by row.

    Examples
    --------
    >>> GroupLassoPenalty(1.0, np.ones(2), 2).prox(np.array([3.0, 0.5, 4.0, 0.5]), 1.0).round(6).tolist()
    [2.4, 0.0, 3.2, 0.0]
    """

    def __init__(self, strength: float, row_scale: Floats, n_columns: int) -> None:
        if not strength >= 0 or not (np.asarray(row_scale) > 0).all():
            raise ModelError(
                f"strength must be 0 or more, and every row_scale positive, not {strength!r} and scales of "
                f"at least {np.min(row_scale):g}"
            )
        self._strength, self._row_scale, self._n_columns = strength, np.reshape(row_scale, (-1, 1)), n_columns

    def __call__(self, x: Floats) -> float:
        """Return the penalty at x, a matrix passed as a vector (rows * columns,)."""
        scaled = self._row_scale * self._reshape_to_matrix(x)
        return float(self._strength * np.linalg.norm(scaled, axis=0).sum())

    def prox(self, x: Floats, tau: float) -> Floats:
        """Apply the proximal operator: return the p that minimizes tau * penalty(p) + |p - x|^2 / 2."""
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
        """Return 0, because the convex conjugate of this penalty is 0 wherever it is finite."""
        return 0.0

    def dual_scale(self, dual: Floats) -> float:
        """Return the largest factor <= 1 for which the convex conjugate at factor * dual is finite."""
        scaled = self._reshape_to_matrix(dual) / self._row_scale
        max_norm = float(np.linalg.norm(scaled, axis=0).max(initial=0.0))
        return min(1.0, self._strength / max_norm) if max_norm > 0 else 1.0

    def _reshape_to_matrix(self, x: Floats) -> Floats:
        return np.reshape(x, (-1, self._n_columns))


class AffineSet:
    """The constraint C x = d, to be passed to `fista` as its penalty.

    Projections onto this set are exact, because they use a QR factorization of C. pyproximal computes such
    projections iteratively.

    Parameters
    ----------
    C : array (equations, N)
        Matrix of full row rank.
    d : array (equations,)
        Right-hand side.

    Raises
    ------
    ModelError
        If C or d is not finite, their shapes do not match, or C does not have full row rank.

    Examples
    --------
    >>> AffineSet([[1.0, 1.0]], [1.0]).prox(np.zeros(2), 1.0).round(12).tolist()
    [0.5, 0.5]
    """

    def __init__(self, C: Any, d: Any) -> None:
        C, d = np.asarray(C, dtype=np.float64), np.asarray(d, dtype=np.float64)
        if C.ndim != 2 or d.shape != C.shape[:1] or not (np.isfinite(C).all() and np.isfinite(d).all()):
            raise ModelError(
                "C must be a finite array (equations, N) and d a finite array (equations,), not of shapes "
                f"{C.shape} and {d.shape}"
            )
        Q, R, pivots = qr(C.T, mode="economic", pivoting=True)
        diagonal = np.abs(np.diag(R))
        rank = int((diagonal > max(C.shape) * FLOAT64_EPS * diagonal.max(initial=0.0)).sum())
        if rank < len(d):
            raise ModelError(
                f"the {len(d)} rows of C must be linearly independent, but have rank {rank}. Leave out "
                f"equations that are combinations of other equations ({len(d) - rank} in all)"
            )
        self._Q, self._rhs = Q, solve_triangular(R, d[pivots], trans="T")

    def __call__(self, x: Floats) -> bool:
        """Return whether x satisfies the equations, up to rounding."""
        magnitude = max(1.0, float(np.abs(x).max(initial=0.0)), float(np.abs(self._rhs).max(initial=0.0)))
        return bool(np.abs(self._Q.T @ x - self._rhs).max(initial=0.0) <= 1e-10 * magnitude)

    def prox(self, x: Floats, tau: float) -> Floats:
        """Return the point of the set that is nearest to x. `tau` is ignored."""
        return np.asarray(x - self._Q @ (self._Q.T @ x - self._rhs))


def _solve_secular_equations(numerators: Floats, poles: Floats) -> Floats:
    """Solve sum_k numerators_k / (r + poles_k)^2 = 1 for r > 0, for each column.

    The proximal operator of the group lasso leads to this equation. Newton's method is applied to
    1 / sqrt(sum) - 1, as in trust-region methods (More and Sorensen, 1983).

    Parameters
    ----------
    numerators : array (rows, columns)
        Numerators. In each column, the sum of numerators / poles^2 must exceed 1, so that a solution exists.
    poles : array (rows, 1)
        Positive numbers, the same for all columns.

    Returns
    -------
    array (columns,)
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
