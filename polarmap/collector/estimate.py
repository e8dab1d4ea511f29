"""At the deadline: results of all data blocks, those that are not determined as estimates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.code.dtypes import DType, epsilon, is_exact
from polarmap.code.estimation import Estimator, estimator
from polarmap.code.polar import PolarCode
from polarmap.collector.arrivals import Arrivals, leaves_of

Array = npt.NDArray[Any]


class Estimate(NamedTuple):
    """Flat results of the k data tasks, and the relative error to expect of each; 0.0 for exact ones."""

    results: list[list[Array]]
    errors: tuple[float, ...]


def estimate(arrivals: Arrivals, code: PolarCode) -> Estimate:
    """Estimates from what arrived, which must not be nothing.

    Errors are root mean squares over the entries of a block, in relation to that of the results that
    arrived; the largest of its leaves.
    """
    mask = np.isin(np.arange(code.n), list(arrivals.received))
    dtypes = arrivals.dtypes()
    precision = max(epsilon(np.dtype(float) if is_exact(one) else arrivals.precision(one)) for one in dtypes)
    how = estimator(code, mask, precision)
    shapes = [leaf.shape for leaf in leaves_of(next(iter(arrivals.received.values())))]
    errors = np.zeros(code.k)
    estimated: list[Array] = []
    for leaf, dtype in enumerate(dtypes):
        rows = arrivals.rows(leaf)
        received = np.stack([rows[int(index)] for index in how.arrived])
        estimated.append(_combined(how, received, dtype))
        errors[how.missing] = np.maximum(errors[how.missing], how.errors * _relative_scatter(how, received))
    place = {int(index): row for row, index in enumerate(how.missing)}

    def result(index: int) -> list[Array]:
        if index not in place:
            return leaves_of(arrivals.received[index])
        return [leaf[place[index]].reshape(shape) for leaf, shape in zip(estimated, shapes)]

    return Estimate([result(index) for index in range(code.k)], tuple(errors.tolist()))


def _combined(how: Estimator, received: Array, dtype: DType) -> Array:
    combined = how.weights @ received.astype(np.complex128 if dtype.kind == "c" else np.float64)
    return (np.rint(combined) if is_exact(dtype) else combined).astype(dtype)


def _relative_scatter(how: Estimator, received: Array) -> float:
    """The scatter of blocks around their mean, as a share of their root mean square."""
    real = np.concatenate([received.real, received.imag], axis=1).astype(np.float64)
    size = float(np.sqrt(np.mean(real**2))) if real.size else 0.0
    return how.scatter(real) / size if size > 0 else 0.0
