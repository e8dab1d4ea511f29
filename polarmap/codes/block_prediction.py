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

from polarmap.codes.base import CodeMatrices
from polarmap.dtypes import Floats, Indices

NORMAL_P90 = 1.2815515655446004  # quantile of the standard normal distribution
MIN_RESULTS = 3  # results, with which deviations begin to tell how much they vary
DETERMINED_TOL = (
    1e-7  # of a block that equations do not see: less is rounding, as `precision` bounds condition
)


class MissingBlockPredictor(NamedTuple):
    """How to estimate the missing data blocks of one arrival pattern.

    missing_indices, arrived_indices : positions, ascending.
    weights : estimates = weights @ received, shape (missing, arrived); rows sum to one.
    error_stds : root mean square error to expect of each, in standard deviations of a block around the mean.
    centring_matrix, deviation_norms : deviations = centring @ received have, divided by gains, that standard
        deviation.
    n_unobserved : dimensions of the missing blocks that no equation sees.
    """

    missing_indices: Indices
    arrived_indices: Indices
    weights: Floats
    error_stds: Floats
    centring_matrix: Floats
    deviation_norms: Floats
    n_unobserved: float

    def compute_block_std(self, received: Floats) -> float:
        """The standard deviation of a block around the mean, from received blocks (arrived, b).

        With a single one it is taken to be as large as that block.
        """
        if len(self.arrived_indices) < 2 or not received.size:
            return float(np.sqrt(np.mean(received**2))) if received.size else 0.0
        return float(np.sqrt(self._compute_mean_square_deviations(received).mean()))

    def estimate_error_to_std_ratio_p90(self, received: Floats) -> float:
        """The ratio of the true error of all blocks together to `error_stds` that nine in ten orders stay
        below.

        Squared, it is taken to be F-distributed: what is unseen, over what has shown of the scatter. A
        block has as many degrees of freedom as the squares of the received ones vary little, and no more
        than those are. inf from fewer than three.
        """
        n_others = len(self.arrived_indices) - 1
        if n_others < MIN_RESULTS - 1 or not received.size:
            return inf
        mean_squares = self._compute_mean_square_deviations(received)
        mean = float(mean_squares.mean())
        relative_variance = float(mean_squares.var(ddof=1)) / mean**2 if mean > 0 else 0.0
        degrees_of_freedom = max(0.5, 1 / (relative_variance / 2 + 1 / n_others))
        dfn, dfd = degrees_of_freedom * max(1.0, self.n_unobserved), degrees_of_freedom * n_others
        return sqrt(compute_f_distribution_p90(dfn, dfd))

    def _compute_mean_square_deviations(self, received: Floats) -> Floats:
        """The mean squared deviation of every received block from the mean, as if it were of data."""
        deviations = self.centring_matrix @ received / self.deviation_norms[:, None]
        return np.asarray((deviations**2).mean(axis=1))


def compute_f_distribution_p90(dfn: float, dfd: float) -> float:
    """The 90 % quantile of the F distribution, within 10 %; inf for less than about one degree below.

    Paulson (1942): the cube root of F is nearly a ratio of two normal variables.

    >>> freedoms = (1, 10), (10, 10), (40, 4)  # exact: 3.29, 2.32, 3.80
    >>> [round(compute_f_distribution_p90(*freedom), 2) for freedom in freedoms]
    [3.22, 2.32, 3.82]
    """
    variances = 2 / (9 * dfn), 2 / (9 * dfd)
    means = 1 - variances[0], 1 - variances[1]
    leading_coefficient = means[1] ** 2 - NORMAL_P90**2 * variances[1]
    if leading_coefficient <= 0:
        return inf
    product = means[0] * means[1]
    discriminant = product**2 - leading_coefficient * (means[0] ** 2 - NORMAL_P90**2 * variances[0])
    return float(((product + sqrt(discriminant)) / leading_coefficient) ** 3)


def make_missing_block_predictor(
    code: CodeMatrices, arrived_mask: npt.NDArray[np.bool_], rounding_error: float
) -> MissingBlockPredictor:
    """The estimator for the mask `arrived_mask`, which must not be empty.

    `rounding_error`: relative rounding of the results; directions that parity shows more weakly than its
    square root are left to the mean.

    Examples
    --------
    >>> from polarmap.codes import PolarCode
    >>> code = PolarCode(4, 3)
    >>> two = make_missing_block_predictor(code, np.array([True, True, False, False]), 1e-16)
    >>> two.weights.tolist(), two.error_stds.round(3).tolist()
    ([[0.5, 0.5]], [1.225])
    >>> make_missing_block_predictor(code, np.array([True, True, False, True]), 1e-16).error_stds.tolist()
    [0.0]
    """
    encoding_matrix = code.encoding_matrix.astype(np.float64)
    arrived_indices, k = np.flatnonzero(arrived_mask), code.k
    missing_indices, data_indices = np.flatnonzero(~arrived_mask[:k]), np.flatnonzero(arrived_mask[:k])
    parity_indices = np.flatnonzero(arrived_mask[k:])
    n_arrived = len(arrived_indices)
    centring_matrix = np.eye(n_arrived) - 1 / n_arrived
    system_matrix = encoding_matrix[np.ix_(parity_indices, missing_indices)]
    pseudo_inverse = (
        np.linalg.pinv(system_matrix, rcond=np.sqrt(rounding_error))
        if system_matrix.size
        else np.zeros(system_matrix.T.shape)
    )
    data_coefficients = encoding_matrix[np.ix_(parity_indices, data_indices)]
    syndrome_matrix = np.concatenate([-data_coefficients, np.eye(len(parity_indices))], axis=1)
    weights = 1 / n_arrived + pseudo_inverse @ syndrome_matrix @ centring_matrix
    unobserved_projector = np.eye(len(missing_indices)) - pseudo_inverse @ system_matrix
    mean_square_errors = (unobserved_projector**2).sum(axis=1)
    mean_square_errors += unobserved_projector.sum(axis=1) ** 2 / n_arrived
    mean_square_errors[mean_square_errors < DETERMINED_TOL**2] = 0.0
    arrived_generator = code.generator_matrix[arrived_indices].astype(np.float64)
    deviation_norms = (
        np.linalg.norm(centring_matrix @ arrived_generator, axis=1) if n_arrived > 1 else np.ones(n_arrived)
    )
    deviation_norms[deviation_norms == 0] = 1.0
    return MissingBlockPredictor(
        missing_indices,
        arrived_indices,
        weights,
        np.sqrt(mean_square_errors),
        centring_matrix,
        deviation_norms,
        float(np.trace(unobserved_projector)),
    )
