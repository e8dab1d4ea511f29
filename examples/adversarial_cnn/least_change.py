"""The least change of an image that makes its margin positive, from values and gradients of that alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq


def least_change(
    margin: Callable[[np.ndarray], np.ndarray],
    gradient: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    most: int = 12,
) -> np.ndarray | None:
    """min |x - image| such that margin(x) = 0.05 and 0 <= x <= 1; None if not found in `most` steps.

    Each goes to the solution for a linear margin, but half way after the second, lest they go back and forth.
    """
    x, value, best = image, margin(image), None
    for step in range(most):
        x = x + (1 if step < 2 else 0.5) * (closest(image, x, value - 0.05, gradient(x)) - x)
        value = margin(x)
        if value > 0:
            if best is not None and np.linalg.norm(x - image) > 0.99 * np.linalg.norm(best - image):
                break
            best = x
    return best


def closest(image: np.ndarray, x: np.ndarray, value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The point of [0, 1] closest to `image` at which value + slope . (point - x) = 0, or short of that."""

    def at(t: float) -> np.ndarray:
        return np.clip(image + t * slope, 0, 1)

    def linear(t: float) -> float:
        return value + float(np.vdot(slope, at(t) - x))

    far = 100 / abs(slope).max()  # there, almost every pixel is 0 or 1
    return at(brentq(linear, 0, far)) if linear(0) < 0 < linear(far) else at(far if linear(0) < 0 else 0)
