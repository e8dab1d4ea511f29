"""Compute directional derivatives of f by finite differences: the tasks of a black-box gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Function = Callable[[Any], Any]
SlopeTask = Callable[[Any], tuple[Floats, Floats]]


class NotScalarError(ValueError):
    """Raised if f returns anything other than one real number."""


class SlopeErrorInputs(NamedTuple):
    """The inputs of the error estimate of one worker's slopes, sent with them as an array.

    Attributes
    ----------
    min_value, max_value : float
        The smallest and largest value of f.
    second_difference : float
        |f(x + hu) - 2 f(x) + f(x - hu)| along one direction; 0 for the central scheme.
    result_eps : float
        Machine epsilon of the numbers that f returns.
    max_direction_norm : float
        Norm of the longest direction.
    """

    min_value: float
    max_value: float
    second_difference: float
    result_eps: float
    max_direction_norm: float


def make_coordinate_slope_task(
    f: Function, x: Floats, scale: Floats, h: float, scheme: str, n_groups: int
) -> SlopeTask:
    """Return the function that computes slopes along combinations of k = `n_groups` groups of coordinates.

    Group i contains coordinates i, i + k, i + 2k, ... of the d coordinates, in units of `scale`. Direction j
    combines the j-th coordinate of every group. A block holds the k coefficients of the combination, as the
    code combines rows of an identity matrix: its size does not depend on d.
    """
    n_directions = -(-x.size // n_groups)

    def generate_directions(coefficients: Floats) -> Iterator[Floats]:
        for j in range(n_directions):
            u = np.zeros((n_directions, n_groups))
            u[j] = coefficients
            yield u.reshape(-1)[: x.size].reshape(x.shape)

    return lambda block: compute_slopes(f, x, generate_directions(block), scale, h, scheme)


def make_row_slope_task(f: Function, x: Floats, scale: Floats, h: float, scheme: str) -> SlopeTask:
    """Return the function that computes slopes along the rows of a block. Each row has the size of x."""
    return lambda block: compute_slopes(
        f, x, (row.reshape(x.shape) / scale for row in block), scale, h, scheme
    )


def compute_slopes(
    f: Function, x: Floats, directions: Iterator[Floats], scale: Floats, h: float, scheme: str
) -> tuple[Floats, Floats]:
    """Return the derivative of f at x along scale * u for each direction u, and a `SlopeErrorInputs` array.

    f is evaluated at distance h from x in units of `scale`, whatever the norm of u: the slope along u / |u|
    is measured and then multiplied by |u|.

    Parameters
    ----------
    f : callable
        Returns one real number.
    x : array
        The point.
    directions : iterator of array
        The directions u, each of the shape of x.
    scale : array
        Unit of each coordinate.
    h : float
        Step size, in units of `scale`.
    scheme : str
        "forward" for an error of O(h), or "central" for O(h^2).
    """
    probe = _FunctionProbe(f, x)
    slopes, norms = [], []
    center_value = probe(np.zeros_like(x)) if scheme == "forward" else None
    for u in directions:
        norm = float(np.linalg.norm(u.reshape(-1)))
        norms.append(norm)
        if norm == 0.0:  # A filler for coordinates that x does not have.
            slopes.append(0.0)
            continue
        step = (h / norm) * u * scale
        if center_value is None:
            difference, distance = probe(step) - probe(-step), 2.0 * h
        else:
            forward_value = probe(step)
            if probe.second_difference is None:
                probe.second_difference = abs((forward_value - center_value) + (probe(-step) - center_value))
            difference, distance = forward_value - center_value, h
        slopes.append(norm * (difference / distance))
    return np.array(slopes), np.array(probe.make_error_inputs(max(norms)))


class _FunctionProbe:
    """A function that evaluates f at x + step, and records what the error estimate needs."""

    def __init__(self, f: Function, x: Floats) -> None:
        self._f, self._x = f, x
        self._min_value, self._max_value, self._eps = np.inf, -np.inf, float(np.finfo(np.float64).eps)
        self.second_difference: float | None = None

    def __call__(self, step: Floats) -> float:
        value = np.asarray(self._f(self._x + step))
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise NotScalarError(f"f must return one real number, not {value.dtype}{list(value.shape)}")
        if value.dtype.kind == "f":
            self._eps = max(self._eps, float(np.finfo(value.dtype).eps))
        result = float(value.reshape(-1)[0])
        self._min_value, self._max_value = min(self._min_value, result), max(self._max_value, result)
        return result

    def make_error_inputs(self, max_direction_norm: float) -> SlopeErrorInputs:
        """Return the inputs of the error estimate for all values so far."""
        second_difference = self.second_difference or 0.0
        return SlopeErrorInputs(
            self._min_value, self._max_value, second_difference, self._eps, max_direction_norm
        )
