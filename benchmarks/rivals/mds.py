"""MDS codes over the reals: any k of n blocks decode, by a dense k x k solve at the worst.

Gaussian coefficients are the best conditioned known. Polynomial codes, data and parity being the
values of one polynomial at n points, are the classical ones: Vandermonde at equally spaced points,
and Chebyshev points, which are optimal while all of them are there and are not once some are not.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from benchmarks.rivals import Array, Rival
from polarmap.code.recovery import left_inverse


class Dense(Rival):
    """[I; P] for a dense P, scaled so that its rows have unit norm."""

    def __init__(self, n: int, k: int, coefficients: Array, name: str) -> None:
        self.n, self.k, self.name, self.coefficients = n, k, name, coefficients
        self.norms = np.append(np.ones(k), np.linalg.norm(coefficients, axis=1))
        self.encode_operations = 2.0 * k * (n - k)

    def encode(self, data: Array) -> Array:
        coded = np.empty((self.n, data.shape[1]))
        coded[: self.k] = data
        np.matmul(self.coefficients, data, out=coded[self.k :])
        return coded

    def plan(self, arrived: Array) -> Solved:
        return Solved(self.coefficients, arrived)


def gaussian(n: int, k: int, seed: int = 0) -> Dense:
    """Independent normal coefficients."""
    P = np.random.default_rng(seed).standard_normal((n - k, k))
    return Dense(n, k, P / np.linalg.norm(P, axis=1, keepdims=True), "dense Gaussian")


class Solved:
    """The missing data by the least-squares solution of the parity equations that arrived."""

    def __init__(self, coefficients: Array, arrived: Array) -> None:
        k = coefficients.shape[1]
        here = np.zeros(k + len(coefficients), bool)
        here[arrived] = True
        self._known, self.missing = np.flatnonzero(here[:k]), np.flatnonzero(~here[:k])
        self._parity = np.flatnonzero(here[k:])
        self._received = np.append(self._known, k + self._parity)
        self.operations = 2.0 * len(self.missing) * len(self._received)
        rows = coefficients[self._parity]
        solver = left_inverse(rows[:, self.missing])
        # The missing data as combinations of what arrived: (missing, received).
        self.weights = np.concatenate([-(solver @ rows[:, self._known]), solver], axis=1)

    def recover(self, blocks: Array) -> Array:
        data = blocks[: len(self._known) + len(self.missing)].copy()
        data[self.missing] = self.weights @ blocks[self._received]
        return data


class Polynomial:
    """Values at n points of the polynomial of degree below k through the k data blocks.

    Coefficients grow beyond what floats hold, so this says how large errors get, as a logarithm,
    by Lagrange's formula.
    """

    def __init__(self, points: Array, k: int, name: str, seed: int = 0) -> None:
        self.n, self.k, self.name = len(points), k, name
        # Data at random among the points: what is missing is then spread out, whichever it is.
        self.points = np.random.default_rng(seed).permutation(points)

    def log_weights(self, received: Array, wanted: Array) -> Array:
        """log|w| of the weights of `received` values in the `wanted`, (wanted, received).

        w_ij = A(y_i) / (A'(x_j) (y_i - x_j)) with A(y) = product of (y - x_j) over the received.
        """
        x, y = self.points[received], self.points[wanted]
        gaps = np.subtract.outer(x, x)
        np.fill_diagonal(gaps, 1.0)
        across = np.log(np.abs(np.subtract.outer(y, x)))
        return np.asarray(across.sum(axis=1)[:, None] - np.log(np.abs(gaps)).sum(axis=1) - across)

    @cached_property
    def log_norms(self) -> Array:
        """log of the 2-norm of each coded block's coefficients."""
        parity = self.log_weights(np.arange(self.k), np.arange(self.k, self.n))
        return np.append(np.zeros(self.k), _log_norm(parity))

    def log10_amplification(self, arrived: Array) -> float:
        """log10 of the largest relative error of a recovered block, one per rounding unit."""
        missing = np.setdiff1d(np.arange(self.k), arrived)
        if not len(missing):
            return 0.0
        logarithm = self.log_weights(arrived, missing) + self.log_norms[arrived]
        return float(_log_norm(logarithm).max() / np.log(10))


def vandermonde(n: int, k: int) -> Polynomial:
    """Equally spaced points in [-1, 1]."""
    return Polynomial(np.linspace(-1, 1, n), k, "Vandermonde")


def chebyshev(n: int, k: int) -> Polynomial:
    """The zeros of the n-th Chebyshev polynomial."""
    return Polynomial(np.cos((2 * np.arange(n) + 1) * np.pi / (2 * n)), k, "Chebyshev")


def _log_norm(logarithms: Array) -> Array:
    """log of the 2-norm of each row of numbers given by their logarithms."""
    largest = logarithms.max(axis=1)
    return largest + np.log(np.exp(2 * (logarithms - largest[:, None])).sum(axis=1)) / 2
