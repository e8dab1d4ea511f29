"""MDS codes over the reals: any k of n blocks decode, in the worst case by solving a dense k x k system.

Gaussian coefficients are the best conditioned known. For the classical polynomial codes, only the error
amplification is computed, since their coefficients exceed the range of floats.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.rivals import Array, RivalCode
from benchmarks.rivals.polar import PolarmapPlan
from polarmap.codes.linear_code import SystematicCode


class DenseSystematicCode(SystematicCode):
    """A code [I; P] for any P, which finds missing data by least squares from the parity that arrived."""

    name, requirement = "dense", "linear"
    encoding_matrix = np.empty((0, 0))

    def __init__(self, P: Array) -> None:
        self.encoding_matrix = P
        self.n, self.k = sum(P.shape), P.shape[1]


class GaussianMDSCode(RivalCode):
    """A code [I; P] with P of independent normal coefficients, scaled to rows of unit norm."""

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


# Evaluation points of codes whose data and parity are the values of one polynomial of degree below k: equally
# spaced, and the zeros of a Chebyshev polynomial, which are optimal if all values are available.
EVALUATION_POINTS: dict[str, Callable[[int], Array]] = {
    "Vandermonde": lambda n: np.linspace(-1, 1, n),
    "Chebyshev": lambda n: np.cos((2 * np.arange(n) + 1) * np.pi / (2 * n)),
}


def compute_log10_amplification(points: Array, arrived_indices: Array) -> float:
    """Return log10 of the largest relative error of a data block, in rounding units, for k arrived blocks.

    Data blocks are at random positions among the points, so that missing points are spread out for every
    pattern.
    """
    k, points = len(arrived_indices), np.random.default_rng(0).permutation(points)
    parity = log_lagrange_weights(points[:k], points[k:])
    log_norms = np.append(np.zeros(k), log_norm(parity))  # Norms of the coefficients of each coded block.
    missing_indices = np.setdiff1d(np.arange(k), arrived_indices)
    if not len(missing_indices):
        return 0.0
    errors = log_norm(
        log_lagrange_weights(points[arrived_indices], points[missing_indices]) + log_norms[arrived_indices]
    )
    return float(errors.max() / np.log(10))


def log_lagrange_weights(known_points: Array, evaluation_points: Array) -> Array:
    """Return log|w| of the Lagrange weights of values at x in the values at y, shape (y, x).

    The weights themselves would exceed the range of floats: w_ij = A(y_i) / (A'(x_j) (y_i - x_j)) with A(y) =
    product of (y - x_j).
    """
    gaps = np.subtract.outer(known_points, known_points)
    np.fill_diagonal(gaps, 1.0)
    across = np.log(np.abs(np.subtract.outer(evaluation_points, known_points)))
    return np.asarray(across.sum(axis=1)[:, None] - np.log(np.abs(gaps)).sum(axis=1) - across)


def log_norm(logarithms: Array) -> Array:
    """Return the log of the 2-norm of each row of numbers given by their logarithms."""
    row_max = logarithms.max(axis=1)
    return row_max + np.log(np.exp(2 * (logarithms - row_max[:, None])).sum(axis=1)) / 2
