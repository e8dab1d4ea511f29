"""The penalty of convex networks: a norm for each column, of coefficients in any scaled coordinates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.errors import ModelError

Floats = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
NEWTON_STEPS = 100  # of the secular equation, which takes about six


class GroupNorms:
    """strength * sum over columns j of |scale x_j|, for x (rows, columns) row by row, with its conjugate.

    As pyproximal.L21, but a scale for each row: the coordinates in which `fista` takes its steps need not be
    those whose norm is penalized.

    Parameters
    ----------
    strength : float
        0 or more.
    scale : (rows,)
        Positive.
    columns : int

    Raises
    ------
    ModelError
        A negative strength, a scale that is not positive.

    Examples
    --------
    >>> GroupNorms(1.0, np.ones(2), 2).prox(np.array([3.0, 0.5, 4.0, 0.5]), 1.0).round(6).tolist()
    [2.4, 0.0, 3.2, 0.0]
    """

    def __init__(self, strength: float, scale: Floats, columns: int) -> None:
        if not strength >= 0 or not (np.asarray(scale) > 0).all():
            raise ModelError(f"strength must be 0 or more, not {strength!r}, and each scale positive")
        self._strength, self._scale, self._columns = strength, np.reshape(scale, (-1, 1)), columns

    def __call__(self, x: Floats) -> float:
        """At x (rows * columns,)."""
        return float(self._strength * np.linalg.norm(self._scale * self._matrix(x), axis=0).sum())

    def prox(self, x: Floats, tau: float) -> Floats:
        """The p that minimizes tau times the penalty, + |p - x|^2 / 2."""
        z, threshold = self._matrix(x), tau * self._strength
        if threshold == 0:
            return np.array(x, dtype=np.float64)
        p = np.zeros_like(z)
        alive = np.linalg.norm(z / self._scale, axis=0) > threshold
        pulls = threshold * self._scale**2
        norms = _secular_roots((self._scale * z[:, alive]) ** 2, pulls)
        p[:, alive] = z[:, alive] * (norms / (norms + pulls))
        return p.reshape(-1)

    def conjugate(self, v: Floats) -> float:
        """0: v is one that `dual_scale` has scaled into the dual ball."""
        return 0.0

    def dual_scale(self, v: Floats) -> float:
        """The largest factor up to 1 by which v gets a finite conjugate."""
        largest = float(np.linalg.norm(self._matrix(v) / self._scale, axis=0).max(initial=0.0))
        return min(1.0, self._strength / largest) if largest > 0 else 1.0

    def _matrix(self, x: Floats) -> Floats:
        return np.reshape(x, (-1, self._columns))


def _secular_roots(squares: Floats, pulls: Floats) -> Floats:
    """For each column the r > 0 with sum_k squares_k / (r + pulls_k)^2 = 1, where the sum is over 1 at r = 0.

    Newton's method on 1 / sqrt(sum) - 1, which is nearly linear in r and approached from one side: the
    equation of trust regions (More and Sorensen, 1983).
    """
    r: Floats = np.zeros(squares.shape[1])
    for _ in range(NEWTON_STEPS):
        shifted = r + pulls
        terms = squares / shifted**2
        total = terms.sum(axis=0)
        step = (np.sqrt(total) - 1.0) * total / (terms / shifted).sum(axis=0)
        r = np.maximum(r + step, 0.0)
        if (np.abs(step) <= 4 * EPS * r).all():
            break
    return r
