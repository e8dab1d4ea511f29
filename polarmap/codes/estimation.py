"""Blocks that too few results determine: estimated from those there are, with an error to expect.

The model: blocks scatter independently around a common mean. Missing ones then are the mean plus the
shortest deviations that satisfy the parity equations of what arrived: of all linear estimates the one
of least expected square, up to the error of the mean.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.dtypes import Floats, Indices
from polarmap.codes.polar import PolarCode

NINE_IN_TEN = 1.2815515655446004  # quantile of the standard normal distribution
FEWEST = 3  # results, with which deviations begin to tell how much they vary
DETERMINED = 1e-7  # of a block that equations do not see: less is rounding, as `precision` bounds condition


class Estimator(NamedTuple):
    """How to estimate the missing data blocks of one arrival pattern.

    missing, arrived : positions, ascending.
    weights : estimates = weights @ received, shape (missing, arrived); rows sum to one.
    errors : root mean square error to expect of each, in standard deviations of a block around the mean.
    centring, gains : deviations = centring @ received have, divided by gains, that standard deviation.
    unseen : dimensions of the missing blocks that no equation sees.
    """

    missing: Indices
    arrived: Indices
    weights: Floats
    errors: Floats
    centring: Floats
    gains: Floats
    unseen: float

    def scatter(self, received: Floats) -> float:
        """The standard deviation of a block around the mean, from received blocks (arrived, b).

        With a single one it is taken to be as large as that block.
        """
        if len(self.arrived) < 2 or not received.size:
            return float(np.sqrt(np.mean(received**2))) if received.size else 0.0
        return float(np.sqrt(self._squares(received).mean()))

    def error_ratio_p90(self, received: Floats) -> float:
        """The ratio of the true error of all blocks together to `errors` that nine in ten orders stay below.

        Squared, it is taken to be F-distributed: what is unseen, over what has shown of the scatter. A
        block has as many degrees of freedom as the squares of the received ones vary little, and no more
        than those are. inf from fewer than three.
        """
        others = len(self.arrived) - 1
        if others < FEWEST - 1 or not received.size:
            return inf
        squares = self._squares(received)
        mean = float(squares.mean())
        variation = float(squares.var(ddof=1)) / mean**2 if mean > 0 else 0.0
        freedom = max(0.5, 1 / (variation / 2 + 1 / others))
        return sqrt(f_quantile_p90(freedom * max(1.0, self.unseen), freedom * others))

    def _squares(self, received: Floats) -> Floats:
        """The mean squared deviation of every received block from the mean, as if it were of data."""
        deviations = self.centring @ received / self.gains[:, None]
        return np.asarray((deviations**2).mean(axis=1))


def f_quantile_p90(above: float, below: float) -> float:
    """The 90 % quantile of the F distribution, within 10 %; inf for less than about one degree below.

    Paulson (1942): the cube root of F is nearly a ratio of two normal variables.

    >>> [round(f_quantile_p90(*freedom), 2) for freedom in ((1, 10), (10, 10), (40, 4))]  # 3.29, 2.32, 3.80
    [3.22, 2.32, 3.82]
    """
    variances = 2 / (9 * above), 2 / (9 * below)
    means = 1 - variances[0], 1 - variances[1]
    lead = means[1] ** 2 - NINE_IN_TEN**2 * variances[1]
    if lead <= 0:
        return inf
    product = means[0] * means[1]
    root = product**2 - lead * (means[0] ** 2 - NINE_IN_TEN**2 * variances[0])
    return float(((product + sqrt(root)) / lead) ** 3)


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
    return Estimator(missing, positions, weights, np.sqrt(squares), centring, gains, float(np.trace(unseen)))
