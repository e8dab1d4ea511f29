"""Blocks that too few results determine: estimated from those there are, with an error to expect.

The model: blocks scatter independently around a common mean. Missing ones then are the mean plus the
shortest deviations that satisfy the parity equations of what arrived: of all linear estimates the one
of least expected square, up to the error of the mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.code.design import Floats, Indices
from polarmap.code.polar import PolarCode

DETERMINED = 1e-7  # of a block that equations do not see: less is rounding, as `precision` bounds condition


class Estimator(NamedTuple):
    """How to estimate the missing data blocks of one arrival pattern.

    missing, arrived : positions, ascending.
    weights : estimates = weights @ received, shape (missing, arrived); rows sum to one.
    errors : root mean square error to expect of each, in standard deviations of a block around the mean.
    centring, gains : deviations = centring @ received have, divided by gains, that standard deviation.
    """

    missing: Indices
    arrived: Indices
    weights: Floats
    errors: Floats
    centring: Floats
    gains: Floats

    def scatter(self, received: Floats) -> float:
        """The standard deviation of a block around the mean, from received blocks (arrived, b).

        With a single one it is taken to be as large as that block.
        """
        if len(self.arrived) < 2 or not received.size:
            return float(np.sqrt(np.mean(received**2))) if received.size else 0.0
        deviations = self.centring @ received / self.gains[:, None]
        return float(np.sqrt((deviations**2).mean()))


def estimator(code: PolarCode, arrived: npt.NDArray[np.bool_], precision: float) -> Estimator:
    """The estimator for the mask `arrived`, which must not be empty.

    `precision`: relative rounding of the results; directions that parity shows more weakly than its
    square root are left to the mean.

    Examples
    --------
    >>> code = PolarCode(4, 3)
    >>> two = estimator(code, np.array([True, True, False, False]), 1e-16)
    >>> two.weights.tolist(), two.errors.round(3).tolist()
    ([[0.5, 0.5]], [1.225])
    >>> estimator(code, np.array([True, True, False, True]), 1e-16).errors.tolist()
    [0.0]
    """
    coefficients = code.coefficients.astype(np.float64)
    positions, k = np.flatnonzero(arrived), code.k
    missing, known = np.flatnonzero(~arrived[:k]), np.flatnonzero(arrived[:k])
    parity = np.flatnonzero(arrived[k:])
    count = len(positions)
    centring = np.eye(count) - 1 / count
    system = coefficients[np.ix_(parity, missing)]
    solver = np.linalg.pinv(system, rcond=np.sqrt(precision)) if system.size else np.zeros(system.T.shape)
    syndrome = np.concatenate([-coefficients[np.ix_(parity, known)], np.eye(len(parity))], axis=1)
    weights = 1 / count + solver @ syndrome @ centring
    unseen = np.eye(len(missing)) - solver @ system
    squares = (unseen**2).sum(axis=1) + unseen.sum(axis=1) ** 2 / count
    squares[squares < DETERMINED**2] = 0.0
    generator = code.generator[positions].astype(np.float64)
    gains = np.linalg.norm(centring @ generator, axis=1) if count > 1 else np.ones(count)
    gains[gains == 0] = 1.0
    return Estimator(missing, positions, weights, np.sqrt(squares), centring, gains)
