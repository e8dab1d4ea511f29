"""The algebra of every code: results = G u and wanted = T u, for unknown blocks u.

A code (`linear`) says which G and T, and makes the coded blocks. A `Recovery` is what one pattern of arrivals
makes of them: weights with weights @ G[arrived] = T[missing], which recover what is missing, and
equations with equations @ G[arrived] = 0, which tell whether the results fit together. Both depend
on which results arrived, never on what is in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

from polarmap.code.dtypes import Array, DType, Floats, Indices, Words

Results = Mapping[int, Array]  # flat results by position


MOST_CHECKS = 8  # left-over equations evaluated; more would cost time and tell nothing new


class Recovery(ABC):
    """How to recover the missing results of one pattern of arrivals.

    arrived : the results that are there, ascending.
    missing : those of the wanted results that are not among them, ascending.
    exact : whether integers are recovered modulo 2^64, not as real numbers.
    rounds : whether integers are recovered as real numbers and rounded.
    """

    arrived: Indices
    missing: Indices
    exact = False
    rounds = False

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

    @property
    @abstractmethod
    def amplification(self) -> float:
        """By how much errors of results may grow; 0 if none is missing or exact, inf if undetermined."""

    @abstractmethod
    def equations(self, most: int) -> Floats:
        """Up to `most` equations on the arrived results, (s, arrived)."""

    @abstractmethod
    def recover(self, rows: Results, dtype: DType) -> Array:
        """The missing results, (len(missing), b), from those that arrived."""

    @cached_property
    def checks(self) -> Floats:
        """The equations that are evaluated to verify results."""
        return self.equations(MOST_CHECKS)

    def integer_weights(self) -> Words | None:
        """The weights of integers modulo 2^64; None unless `exact`."""
        return None

    def integer_checks(self, without: int | None = None) -> Words | None:
        """The equations of integers modulo 2^64, those without result `without`; None unless `exact`."""
        return None

    def checkable(self, rows: Results) -> Results:
        """What satisfies the equations, made of the results that arrived: these themselves."""
        return rows
