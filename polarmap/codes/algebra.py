"""The algebra of every code: results = G u and wanted = T u, for unknown blocks u.

A code is `Matrices` that say G and T; it makes the coded blocks, too (`linear`). A `Recovery` is what one
pattern of arrivals makes of them: weights with weights @ G[arrived] = T[missing], which recover what is
missing, and equations with equations @ G[arrived] = 0, which tell whether the results fit together. Both
depend on which results arrived, never on what is in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.codes.dtypes import Array, DType, Floats, Indices, Mask, Words, is_exact

Results = Mapping[int, Array]  # flat results by position

TINY = 1e-12  # coefficients below are rounding
MOST_CHECKS = 8  # left-over equations evaluated; more would cost time and tell nothing new
# Of integers one result in 2^16 has an even coefficient in all of these, which hides what wraps modulo 2^64.
INTEGER_CHECKS = 16


class Matrices(ABC):
    """What a code is by its matrices: coded blocks = E blocks, results = G u, wanted = T u.

    n, k : coded blocks and data blocks.
    gain : by how much the results that arrive may exceed those wanted.
    """

    n: int
    k: int
    gain = 1.0

    @property
    @abstractmethod
    def coefficients(self) -> Array:
        """E, shape (n - len(systematic), number of blocks that are mixed)."""

    @property
    def generator(self) -> Array:
        """G, shape (n, number of unknowns): E, where f commutes with the mixtures that are sent."""
        return self.coefficients

    @property
    def targets(self) -> Array:
        """T, shape (wanted, number of unknowns): [I, 0], where the first of these are wanted."""
        return np.eye(self.wanted, self.coefficients.shape[1], dtype=self.coefficients.dtype)

    @property
    def recovery_threshold(self) -> int:
        """The fewest results that can determine those wanted: one for each unknown."""
        return int(self.generator.shape[1])

    def columns(self, blocks: Indices) -> Array:
        """The columns of E of some blocks."""
        return self.coefficients[:, blocks]

    def transposed(self, combinations: Floats) -> Floats:
        """Combinations (rows) of the coded blocks as they are made of blocks: combinations @ E."""
        return np.asarray(combinations @ self.coefficients)

    @property
    @abstractmethod
    def wanted(self) -> int:
        """How many results are wanted."""

    @property
    @abstractmethod
    def systematic(self) -> Indices:
        """The coded blocks that are data blocks untouched."""


class Composition(NamedTuple):
    """What missing results are made of.

    used : which of the results that arrived any of them is made of, (arrived,).
    mixed : which are no copy of a result, (missing,).
    shown : which of those that arrived show in each whatever they deviate by, (missing, arrived).
    """

    used: Mask
    mixed: Mask
    shown: Mask


def are_nonzero(coefficients: Floats | Words) -> Mask:
    """Which are not zero, or no more than rounding of it."""
    least = 0 if is_exact(coefficients.dtype) else TINY
    return np.asarray((coefficients > least) | (coefficients < -least))


def are_seen(coefficients: Floats | Words) -> Mask:
    """Which multiply no deviation to zero: modulo 2^64 the odd ones, an even one wraps some to nothing."""
    return np.asarray(coefficients % 2 == 1) if is_exact(coefficients.dtype) else are_nonzero(coefficients)


class Recovery(ABC):
    """How to recover the missing results of a code when those of the mask `arrived` are there.

    arrived : the results that are there, ascending.
    known : those of them that are wanted as they are.
    missing : those of the wanted results that are not among them, ascending.
    exact : whether integers are recovered modulo 2^64, not as real numbers.
    """

    exact = False

    def __init__(self, code: Matrices, arrived: Mask) -> None:
        systematic = len(code.systematic)
        is_missing = np.ones(code.wanted, bool)
        is_missing[:systematic] = ~arrived[:systematic]
        self.code = code
        self.arrived = np.flatnonzero(arrived)
        self.known: Indices = np.flatnonzero(arrived[:systematic])
        self.missing: Indices = np.flatnonzero(is_missing)

    def follow(self, former: Recovery) -> None:
        """Take over what `former` has computed, of the same code when fewer results had arrived."""
        return  # nothing, but of recoveries that say what

    @property
    @abstractmethod
    def deficit(self) -> int:
        """How many more results it takes at the least; 0 once the missing ones are determined."""

    @property
    @abstractmethod
    def surplus(self) -> int:
        """How many equations the arrived results must satisfy; below 0 while they are too few."""

    @property
    @abstractmethod
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""

    @abstractmethod
    def equations(self, most: int) -> Floats:
        """Up to `most` equations on the arrived results, (s, arrived)."""

    @abstractmethod
    def recover(self, rows: Results, dtype: DType) -> Array:
        """The missing results, (len(missing), b), from those that arrived."""

    @property
    def rounds(self) -> bool:
        """Whether integers are recovered as real numbers and rounded."""
        return not self.exact

    @cached_property
    def amplification(self) -> float:
        """By how much errors of results may grow; 0 if none is missing or exact, inf if undetermined.

        The largest 2-norm of a row of `weights`.
        """
        if self.exact or not len(self.missing):
            return 0.0
        if self.deficit:
            return np.inf
        norms = np.sqrt(np.einsum("ij,ij->i", self.weights, self.weights))
        return float(norms.max()) if np.isfinite(norms).all() else np.inf

    def composition(self, dtype: DType) -> Composition:
        """What the missing results of `dtype` are made of."""
        if is_exact(dtype) not in self._compositions:
            self._compositions[is_exact(dtype)] = self._composition(dtype)
        return self._compositions[is_exact(dtype)]

    @cached_property
    def _compositions(self) -> dict[bool, Composition]:
        """Of integers and of floats: they are asked for again and again, and the weights are large."""
        return {}

    def _composition(self, dtype: DType) -> Composition:
        weights: Floats | Words = np.empty((0, len(self.arrived)))
        if len(self.missing):
            words = self.integer_weights() if is_exact(dtype) else None
            weights = self.weights if words is None else words
        are_there = are_nonzero(weights)
        shown = are_seen(weights) if is_exact(weights.dtype) else are_there
        return Composition(np.asarray(are_there.any(axis=0)), are_there.sum(axis=1) > 1, shown)

    @cached_property
    def checks(self) -> Floats:
        """The equations that are evaluated to verify results."""
        return self.equations(MOST_CHECKS)

    def integer_weights(self) -> Words | None:
        """The weights of integers modulo 2^64; None unless `exact`."""
        return None

    def integer_checks(self) -> Words | None:
        """Independent equations of integers modulo 2^64, at most INTEGER_CHECKS; None unless `exact`."""
        return None

    def checks_of(self, dtype: DType) -> Floats | Words:
        """The equations that results of `dtype` are to satisfy."""
        words = self.integer_checks() if is_exact(dtype) else None
        return self.checks if words is None else words

    def checkable(self, rows: Results) -> Results:
        """What satisfies the equations, made of the results that arrived: these themselves."""
        return rows
