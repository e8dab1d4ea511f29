"""What a worker does for a black-box gradient: slopes of f along a few directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Function = Callable[[Any], Any]
Task = Callable[[Any], tuple[Floats, Floats]]


class NotScalarError(ValueError):
    """f returned something else than one real number."""


class Sizes(NamedTuple):
    """What tells the error of slopes, per worker; travels as an array beside them.

    lowest, highest : values of f.
    curvature : |f(x + hu) - 2 f(x) + f(x - hu)| along one direction; 0 by the central scheme.
    eps : rounding of the numbers that f returns.
    longest : norm of the longest direction.
    """

    lowest: float
    highest: float
    curvature: float
    eps: float
    longest: float


def along_coordinates(f: Function, x: Floats, scale: Floats, h: float, scheme: str, k: int) -> Task:
    """Slopes along a combination of k groups of coordinates, the block being its k coefficients.

    Group i holds coordinates i, i + k, i + 2k, .. of the d, in units of `scale`; direction j takes
    the j-th of every group. The code combines rows of the identity, so a block is k numbers however
    large d is.
    """
    rounds = -(-x.size // k)

    def directions(coefficients: Floats) -> Iterator[Floats]:
        for j in range(rounds):
            u = np.zeros((rounds, k))
            u[j] = coefficients
            yield u.reshape(-1)[: x.size].reshape(x.shape)

    return lambda block: slopes(f, x, directions(block), scale, h, scheme)


def along_rows(f: Function, x: Floats, scale: Floats, h: float, scheme: str) -> Task:
    """Slopes along the rows of a block, each of which has the size of x."""
    return lambda block: slopes(f, x, (row.reshape(x.shape) / scale for row in block), scale, h, scheme)


def slopes(
    f: Function, x: Floats, directions: Iterator[Floats], scale: Floats, h: float, scheme: str
) -> tuple[Floats, Floats]:
    """The derivative of f at x along z = scale * u for every direction u, to O(h^2) or O(h); `Sizes`.

    f is evaluated at distance h from x in units of scale, whatever the norm of u: the slope along
    u / |u| is measured, then multiplied by |u|.
    """
    probe = _Probe(f, x)
    found, norms = [], []
    centre = probe(np.zeros_like(x)) if scheme == "forward" else None
    for u in directions:
        norm = float(np.linalg.norm(u.reshape(-1)))
        norms.append(norm)
        if norm == 0.0:  # filler: a coordinate that x does not have
            found.append(0.0)
            continue
        step = (h / norm) * u * scale
        if centre is None:
            rise, run = probe(step) - probe(-step), 2.0 * h
        else:
            above = probe(step)
            if probe.curvature is None:
                probe.curvature = abs((above - centre) + (probe(-step) - centre))
            rise, run = above - centre, h
        found.append(norm * (rise / run))
    return np.array(found), np.array(probe.sizes(max(norms)))


class _Probe:
    """f at x + step, as a float, and what its values tell about their errors."""

    def __init__(self, f: Function, x: Floats) -> None:
        self._f, self._x = f, x
        self._lowest, self._highest, self._eps = np.inf, -np.inf, float(np.finfo(np.float64).eps)
        self.curvature: float | None = None

    def __call__(self, step: Floats) -> float:
        value = np.asarray(self._f(self._x + step))
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise NotScalarError(f"f must return one real number, not {value.dtype}{list(value.shape)}")
        if value.dtype.kind == "f":
            self._eps = max(self._eps, float(np.finfo(value.dtype).eps))
        number = float(value.reshape(-1)[0])
        self._lowest, self._highest = min(self._lowest, number), max(self._highest, number)
        return number

    def sizes(self, longest: float) -> Sizes:
        """What it has seen."""
        curvature = self.curvature or 0.0
        return Sizes(self._lowest, self._highest, curvature, self._eps, longest)
