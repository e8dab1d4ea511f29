"""MDS codes over the reals: any k of n blocks decode, by a dense k x k solve at the worst.

Gaussian coefficients are the best conditioned known. Of polynomial codes, the classical ones, only how large
errors get is computed: their coefficients grow beyond what floats hold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.rivals import Array, RivalCode
from benchmarks.rivals.polar import PolarmapPlan
from polarmap.codes.linear_code import SystematicCode


class DenseSystematicCode(SystematicCode):
    """[I; P] for any P, whose missing data are the least-squares solution of the parity that arrived."""

    name, requirement = "dense", "linear"
    encoding_matrix = np.empty((0, 0))

    def __init__(self, P: Array) -> None:
        self.encoding_matrix = P
        self.n, self.k = sum(P.shape), P.shape[1]


class GaussianMDSCode(RivalCode):
    """[I; P] with P of independent normal coefficients, scaled so that its rows have unit norm."""

    name = "dense Gaussian"

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k, self.norms = n, k, np.ones(n)
        P = np.random.default_rng(0).standard_normal((n - k, k))
        self.parity_matrix = P / np.linalg.norm(P, axis=1, keepdims=True)
        self.encode_operations = 2.0 * k * (n - k)

    def encode(self, data: Array) -> Array:
        coded_blocks = np.empty((self.n, data.shape[1]))
        coded_blocks[: self.k] = data
        np.matmul(self.parity_matrix, data, out=coded_blocks[self.k :])
        return coded_blocks

    def make_plan(self, arrived_indices: Array) -> PolarmapPlan:
        return PolarmapPlan(DenseSystematicCode(self.parity_matrix), arrived_indices, modular=False)


# Of codes whose data and parity are the values of one polynomial of degree below k: equally spaced, and the
# zeros of a Chebyshev polynomial, which are optimal while all of them are there.
EVALUATION_POINTS: dict[str, Callable[[int], Array]] = {
    "Vandermonde": lambda n: np.linspace(-1, 1, n),
    "Chebyshev": lambda n: np.cos((2 * np.arange(n) + 1) * np.pi / (2 * n)),
}


def compute_log10_amplification(points: Array, arrived_indices: Array) -> float:
    """log10 of the largest relative error of a data block, one per rounding unit, of k blocks that arrived.

    Data lies at random among the points: what is missing is then spread out, whichever it is.
    """
    k, points = len(arrived_indices), np.random.default_rng(0).permutation(points)
    parity = log_lagrange_weights(points[:k], points[k:])
    log_norms = np.append(np.zeros(k), log_norm(parity))  # of the coefficients of each coded block
    missing_indices = np.setdiff1d(np.arange(k), arrived_indices)
    if not len(missing_indices):
        return 0.0
    errors = log_norm(
        log_lagrange_weights(points[arrived_indices], points[missing_indices]) + log_norms[arrived_indices]
    )
    return float(errors.max() / np.log(10))


def log_lagrange_weights(known_points: Array, evaluation_points: Array) -> Array:
    """log|w| of the weights of values at x in the values at y by Lagrange, beyond floats: (y, x).

    w_ij = A(y_i) / (A'(x_j) (y_i - x_j)) with A(y) = product of (y - x_j).
    """
    gaps = np.subtract.outer(known_points, known_points)
    np.fill_diagonal(gaps, 1.0)
    across = np.log(np.abs(np.subtract.outer(evaluation_points, known_points)))
    return np.asarray(across.sum(axis=1)[:, None] - np.log(np.abs(gaps)).sum(axis=1) - across)


def log_norm(logarithms: Array) -> Array:
    """log of the 2-norm of each row of numbers given by their logarithms."""
    row_max = logarithms.max(axis=1)
    return row_max + np.log(np.exp(2 * (logarithms - row_max[:, None])).sum(axis=1)) / 2
