"""Constraint sets of pyproximal, with projections of full floating-point accuracy.

pyproximal computes these projections by bisection, and with its default options stops early. Pass the sets to
`polarmap.convex.fista` as its penalty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.dtypes import FLOAT64_EPS
from polarmap.errors import ModelError
from polarmap.optional import require_extra

MAX_BISECTIONS = 1000  # Step limit of bisection, high enough for any interval of float64 numbers.


def simplex(size: int, total: float = 1.0) -> Any:
    """Return the constraint x >= 0, sum(x) = total as a proximal operator (pyproximal.Simplex).

    Parameters
    ----------
    size : int
        Number of entries of x.
    total : float
        Sum of the entries, positive.

    Raises
    ------
    ModelError
        If `size` or `total` is not positive.

    Examples
    --------
    >>> simplex(3).prox(np.array([1.0, 1.0, -1.0]), 1.0).round(12).tolist()
    [0.5, 0.5, 0.0]
    """
    _check_projection_arguments(size, total=total)
    # Import pyproximal lazily, because this takes half as long as importing the models.
    with require_extra("simplex", "pyproximal", "convex"):
        from pyproximal import Simplex
    return Simplex(size, total, maxiter=MAX_BISECTIONS, xtol=FLOAT64_EPS * total)


def l1_ball(size: int, radius: float) -> Any:
    """Return the constraint sum(|x|) <= radius as a proximal operator (pyproximal.L1Ball).

    Parameters
    ----------
    size : int
        Number of entries of x.
    radius : float
        Radius of the ball, positive.

    Raises
    ------
    ModelError
        If `size` or `radius` is not positive.

    Examples
    --------
    >>> l1_ball(2, 1.0).prox(np.array([2.0, 1.0]), 1.0).round(12).tolist()
    [1.0, 0.0]
    """
    _check_projection_arguments(size, radius=radius)
    with require_extra("l1_ball", "pyproximal", "convex"):
        from pyproximal import L1Ball
    return L1Ball(size, radius, maxiter=MAX_BISECTIONS, xtol=FLOAT64_EPS * radius)


def _check_projection_arguments(size: int, **positive_values: float) -> None:
    if size != int(size) or size < 1:
        raise ModelError(f"size must be a whole number, 1 or more, not {size!r}")
    for name, value in positive_values.items():
        if not 0 < value < np.inf:
            raise ModelError(f"{name} must be a positive number, not {value!r}")
