"""Estimate missing results that cannot be decoded yet, together with the expected error.

A map that may return approximate results uses this module. The model assumes that the blocks are scattered
independently around a common mean. Each estimate is the mean of the arrived results plus the smallest
deviation that satisfies the parity checks. Apart from the error of the mean, no other linear estimate has a
smaller expected square error.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.base import CodeMatrices
from polarmap.dtypes import Floats, Indices

NORMAL_P90 = 1.2815515655446004  # The 90 % quantile of the standard normal distribution.
# Estimate the 90 % quantile of the prediction errors only if at least this many results have arrived.
MIN_RESULTS = 3
# A block counts as exactly decoded if its expected error is below this fraction of the standard deviation of
# the blocks. Such a small error is due to rounding.
DETERMINED_TOL = 1e-7


class MissingBlockPredictor(NamedTuple):
    """Weights that estimate the missing data blocks from one set of arrived results, and the expected errors.

    Attributes
    ----------
    missing_indices : index array
        Data blocks to estimate, in ascending order.
    arrived_indices : index array
        Coded blocks that have arrived, in ascending order.
    weights : array (missing, arrived)
        Weights of the arrived results: estimates = weights @ received. Each row sums to one.
    error_stds : array (missing,)
        Expected root mean square error of each estimate, in units of the standard deviation of a block.
    centring_matrix : array (arrived, arrived)
        Matrix that subtracts the mean from the received blocks.
    deviation_norms : array (arrived,)
        Divisors that scale each centred block to the standard deviation of a data block.
    n_unobserved : float
        Number of degrees of freedom of the missing blocks that no parity check constrains.
    """

    missing_indices: Indices
    arrived_indices: Indices
    weights: Floats
    error_stds: Floats
    centring_matrix: Floats
    deviation_norms: Floats
    n_unobserved: float

    def compute_block_std(self, received: Floats) -> float:
        """Estimate the standard deviation of the blocks around their mean.

        Parameters
        ----------
        received : array (arrived, b)
            Flat results, in the order of `arrived_indices`. For a single result, its root mean square is
            returned.

        Returns
        -------
        float
            0 if the results are empty.
        """
        if len(self.arrived_indices) < 2 or not received.size:
            return float(np.sqrt(np.mean(received**2))) if received.size else 0.0
        return float(np.sqrt(self._compute_mean_square_deviations(received).mean()))

    def estimate_error_to_std_ratio_p90(self, received: Floats) -> float:
        """Estimate how many times larger than expected the error of an estimated block may be.

        The true error is at most this multiple of the expected error with a probability of 90 %. The square
        of the ratio is modelled as F-distributed. The degrees of freedom per block are estimated from the
        variation of the mean square deviations of the received blocks.

        Parameters
        ----------
        received : array (arrived, b)
            Flat results, in the order of `arrived_indices`.

        Returns
        -------
        float
            inf if fewer than MIN_RESULTS results have arrived, or if the results are empty.
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
        """Return the mean square deviation of each received block from the mean of all received blocks.

        The deviations of parity blocks, which are sums of several data blocks, are divided by a constant to
        make them comparable with data blocks. The result has shape (arrived,).
        """
        deviations = self.centring_matrix @ received / self.deviation_norms[:, None]
        return np.asarray((deviations**2).mean(axis=1))


def compute_f_distribution_p90(dfn: float, dfd: float) -> float:
    """Approximate the 90 % quantile of the F distribution, within 10 %.

    The approximation treats the cube root of an F-distributed variable as the ratio of two normal variables
    (Paulson 1942).

    Parameters
    ----------
    dfn, dfd : float
        Degrees of freedom of the numerator and of the denominator.

    Returns
    -------
    float
        inf for `dfd` below about one.

    Examples
    --------
    >>> freedoms = (1, 10), (10, 10), (40, 4)  # The exact values are 3.29, 2.32, 3.80.
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
    """Build a predictor that estimates the missing data blocks from one set of arrived results.

    Parameters
    ----------
    code : CodeMatrices
        A systematic code.
    arrived_mask : boolean array (n,)
        True for each coded block that has arrived; at least one must be True.
    rounding_error : float
        Relative rounding error of the results. In the equations that the arrived parity blocks give, singular
        values below its square root, relative to the largest singular value, are ignored.

    Returns
    -------
    MissingBlockPredictor

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
