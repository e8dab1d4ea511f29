"""Sets that pyproximal projects on, by more bisections than it makes: to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.dtypes import FLOAT64_EPS
from polarmap.errors import ModelError
from polarmap.optional import require_extra

MAX_BISECTIONS = 1000  # at most: enough for any float64


def simplex(size: int, total: float = 1.0) -> Any:
    """x >= 0 of that size with sum(x) = total: pyproximal.Simplex, to rounding.

    Examples
    --------
    >>> simplex(3).prox(np.array([1.0, 1.0, -1.0]), 1.0).round(12).tolist()
    [0.5, 0.5, 0.0]
    """
    _check_sizes(size, total=total)
    with require_extra("simplex", "pyproximal", "convex"):  # it takes half of what importing the models takes
        from pyproximal import Simplex
    return Simplex(size, total, maxiter=MAX_BISECTIONS, xtol=FLOAT64_EPS * total)


def l1_ball(size: int, radius: float) -> Any:
    """x of that size with sum(|x|) <= radius: pyproximal.L1Ball, to rounding.

    Examples
    --------
    >>> l1_ball(2, 1.0).prox(np.array([2.0, 1.0]), 1.0).round(12).tolist()
    [1.0, 0.0]
    """
    _check_sizes(size, radius=radius)
    with require_extra("l1_ball", "pyproximal", "convex"):
        from pyproximal import L1Ball
    return L1Ball(size, radius, maxiter=MAX_BISECTIONS, xtol=FLOAT64_EPS * radius)


def _check_sizes(size: int, **positive_values: float) -> None:
    if size != int(size) or size < 1:
        raise ModelError(f"size must be a whole number, 1 or more, not {size!r}")
    for name, value in positive_values.items():
        if not 0 < value < np.inf:
            raise ModelError(f"{name} must be a positive number, not {value!r}")
