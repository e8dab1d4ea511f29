"""Compute directional derivatives of the user's function f by finite differences.

Workers run the functions of this module as tasks to estimate the gradient of a black-box function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Function = Callable[[Any], Any]
SlopeTask = Callable[[Any], tuple[Floats, Floats]]


class NotScalarError(ValueError):
    """Raised if the user's function returns anything other than one real number."""


class SlopeErrorInputs(NamedTuple):
    """The quantities from which the error of finite-difference slopes is estimated.

    A slope is a directional derivative of the user's function f. A worker computes slopes, and sends these
    quantities along with them to the driver (the process that runs the user's program).

    Attributes
    ----------
    min_value, max_value : float
        The smallest and largest values of f that the worker has computed.
    second_difference : float
        |f(x + hu) - 2 f(x) + f(x - hu)| along one direction u; 0 for central differences.
    result_eps : float
        The machine epsilon of the dtype that f returns.
    max_direction_norm : float
        The largest Euclidean norm of a direction.
    """

    min_value: float
    max_value: float
    second_difference: float
    result_eps: float
    max_direction_norm: float


def make_coordinate_slope_task(
    f: Function, x: Floats, scale: Floats, h: float, scheme: str, n_groups: int
) -> SlopeTask:
    """Return a function with which workers compute derivatives of f along groups of coordinates.

    A worker applies the returned function to the block of its task.

    The coordinates of x are divided into k = `n_groups` groups: coordinate c belongs to group c % k. The
    block of a task contains only k coefficients, one per group. In a data block, they are a row of the
    identity matrix, which selects one group. In a parity block, they are a linear combination of such rows.

    For each j, the task computes one slope (directional derivative of f). Its direction is the sum over all
    groups of the group's coefficient times the unit vector of the group's j-th coordinate. For the other
    parameters, see `compute_slopes`.
    """
    n_directions = -(-x.size // n_groups)

    def generate_directions(coefficients: Floats) -> Iterator[Floats]:
        for j in range(n_directions):
            u = np.zeros((n_directions, n_groups))
            u[j] = coefficients
            yield u.reshape(-1)[: x.size].reshape(x.shape)

    return lambda block: compute_slopes(f, x, generate_directions(block), scale, h, scheme)


def make_row_slope_task(f: Function, x: Floats, scale: Floats, h: float, scheme: str) -> SlopeTask:
    """Return a function with which workers compute derivatives of f along given directions.

    A worker applies the returned function to the block of its task. Each row of the block is a direction with
    as many entries as x, along which one slope (directional derivative of f) is computed. For the parameters,
    see `compute_slopes`.
    """
    return lambda block: compute_slopes(
        f, x, (row.reshape(x.shape) / scale for row in block), scale, h, scheme
    )


def compute_slopes(
    f: Function, x: Floats, directions: Iterator[Floats], scale: Floats, h: float, scheme: str
) -> tuple[Floats, Floats]:
    """Compute the derivative of f at x along each direction by finite differences.

    Return the derivatives (slopes), and the fields of `SlopeErrorInputs` as an array. The slope along a
    direction u is the derivative of f(x + t * scale * u) at t = 0. The length of a step does not depend on
    the norm of u: the slope along u / |u| is measured with step size h and then multiplied by |u|.

    Parameters
    ----------
    f : callable
        Called with an array of the shape of x; returns one real number.
    x : array
        The point at which to differentiate.
    directions : iterator of array
        The directions u, each of the shape of x.
    scale : array
        The unit of each coordinate.
    h : float
        Step size, in units of `scale`.
    scheme : str
        "forward" for forward differences, whose error is O(h), or "central" for O(h^2).
    """
    probe = _FunctionProbe(f, x)
    slopes, norms = [], []
    center_value = probe(np.zeros_like(x)) if scheme == "forward" else None
    for u in directions:
        norm = float(np.linalg.norm(u.reshape(-1)))
        norms.append(norm)
        if norm == 0.0:  # The direction is padding for a group that has fewer coordinates than others.
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
    """A wrapper of f that is called with a step and returns f(x + step).

    It also records the smallest and the largest value of f, and the precision of the values. The error of the
    slopes is estimated from them.
    """

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
        """Return the quantities from which the error of slopes is estimated, for all calls of f so far."""
        second_difference = self.second_difference or 0.0
        return SlopeErrorInputs(
            self._min_value, self._max_value, second_difference, self._eps, max_direction_norm
        )
