"""Find the smallest change of an image that makes its margin positive, from margins and gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq


def find_minimal_change(
    margin: Callable[[np.ndarray], np.ndarray],
    gradient: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    max_steps: int = 12,
) -> np.ndarray | None:
    """Minimize |x - image| such that margin(x) = 0.05 and 0 <= x <= 1; return None if no step succeeds.

    Each step goes to the solution for a linearized margin; after the second, half way, to prevent
    oscillation.
    """
    x, value, best = image, margin(image), None
    for step in range(max_steps):
        x = x + (1 if step < 2 else 0.5) * (project_on_margin(image, x, value - 0.05, gradient(x)) - x)
        value = margin(x)
        if value > 0:
            if best is not None and np.linalg.norm(x - image) > 0.99 * np.linalg.norm(best - image):
                break
            best = x
    return best


def project_on_margin(
    image: np.ndarray, x: np.ndarray, value: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """Return the point of [0, 1] closest to `image` with value + gradient . (point - x) = 0, if possible."""

    def point_at(t: float) -> np.ndarray:
        return np.clip(image + t * gradient, 0, 1)

    def linear_margin(t: float) -> float:
        return value + float(np.vdot(gradient, point_at(t) - x))

    t_max = 100 / abs(gradient).max()  # almost every pixel is 0 or 1 there
    return (
        point_at(brentq(linear_margin, 0, t_max))
        if linear_margin(0) < 0 < linear_margin(t_max)
        else point_at(t_max if linear_margin(0) < 0 else 0)
    )
