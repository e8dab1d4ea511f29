"""The algebra of every code: results = G u and wanted = T u, for unknown blocks u.

A `Code` says which G and T, and makes the coded blocks. A `Recovery` is what one pattern of arrivals
makes of them: weights with weights @ G[arrived] = T[missing], which recover what is missing, and
equations with equations @ G[arrived] = 0, which tell whether the results fit together. Both depend
on which results arrived, never on what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from polarmap.code.design import Floats, Indices
from polarmap.code.dtypes import DType
from polarmap.code.tiled import Rows

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Results = Mapping[int, Array]  # flat results by position


class Code(Protocol):
    """n coded blocks, made of k data blocks, whose n results determine the results that are wanted.

    n, k : coded blocks and data blocks.
    degree : of the polynomials that f may be; 1 for linear and affine f.
    wanted : how many results are wanted: those of the k data blocks, or a single sum.
    recovery_threshold : the fewest results that can determine those wanted.
    carries_integers : whether integers are coded, and decoded modulo 2^64, without rounding.
    is_mds : whether any `recovery_threshold` results determine those wanted, or nearly any.
    name : what a report calls it.
    option : the word that asks for such a code, as in code="rotation"; empty if none does.
    assumption : what f must be, to follow "f is not".
    """

    n: int
    k: int
    degree: int

    @property
    def wanted(self) -> int: ...

    @property
    def recovery_threshold(self) -> int: ...

    @property
    def carries_integers(self) -> bool: ...

    @property
    def is_mds(self) -> bool: ...

    @property
    def name(self) -> str: ...

    @property
    def option(self) -> str: ...

    @property
    def assumption(self) -> str: ...

    @property
    def generator(self) -> Array:
        """G, shape (n, number of unknowns)."""
        ...

    @property
    def targets(self) -> Array:
        """T, shape (wanted, number of unknowns)."""
        ...

    @property
    def systematic(self) -> Indices:
        """The coded blocks that are data blocks as they are: 0..k-1, or none."""
        ...

    @property
    def norm_inf(self) -> float:
        """The largest sum of absolute coefficients of a coded block."""
        ...

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Of the coded blocks that are no data blocks; CodeError for data it cannot carry."""
        ...

    def parity(self, rows: Rows, out: Array | None = None) -> Array:
        """The coded blocks that are no data blocks, (n - len(systematic), b), of k flat data blocks."""
        ...

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover what is wanted from the results of the mask; `exact`: integers modulo 2^64."""
        ...

    def progress(self) -> Callable[[int], bool] | None:
        """Told of one arrival after another, says when they determine all; None: the deficit says it."""
        ...


class Recovery(Protocol):
    """How to recover the missing results of one pattern of arrivals.

    arrived : the results that are there, ascending.
    missing : those of the wanted results that are not among them, ascending.
    exact : whether integers are recovered modulo 2^64, not as real numbers.
    rounds : whether integers are recovered as real numbers and rounded.
    """

    arrived: Indices
    missing: Indices
    exact: bool
    rounds: bool

    @property
    def deficit(self) -> int:
        """How many more results it takes at the least; 0 once the missing ones are determined."""
        ...

    @property
    def surplus(self) -> int:
        """How many equations the arrived results must satisfy; below 0 while they are too few."""
        ...

    @property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""
        ...

    @property
    def amplification(self) -> float:
        """By how much errors of results may grow; 0 if none is missing or exact, inf if undetermined."""
        ...

    @property
    def checks(self) -> Floats:
        """A few of the equations: what is evaluated to verify results."""
        ...

    def equations(self, most: int) -> Floats:
        """Up to `most` equations on the arrived results, (s, arrived)."""
        ...

    def integer_weights(self) -> Words | None:
        """The weights of integers modulo 2^64; None unless `exact`."""
        ...

    def integer_checks(self, without: int | None = None) -> Words | None:
        """The equations of integers modulo 2^64, those without result `without`; None unless `exact`."""
        ...

    def checkable(self, rows: Results) -> Results:
        """What satisfies the equations, made of the results that arrived."""
        ...

    def recover(self, rows: Results, dtype: DType) -> Array:
        """The missing results, (len(missing), b), from those that arrived."""
        ...


def is_code(value: object) -> TypeGuard[Code]:
    """Whether an argument of a caller's is a code."""
    members = ("n", "k", "recovery_threshold", "parity", "recovery")
    return not isinstance(value, type) and all(hasattr(value, member) for member in members)
