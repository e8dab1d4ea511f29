"""SymmetricProductCode: A_i' A_j for i <= j only, the blocks below the diagonal are their transposes.

    x = G_A X G_A'   with X' = X,   so for the symmetric parts x_ij + x_ij'   G = [I; P],   T = I

P is that of the whole grid with the two columns of x_ab and x_ba added up. A whole block needs more
than its symmetric part: it is recovered on the whole grid, from arrivals and their transposes.
"""

from __future__ import annotations

from functools import cached_property
from math import isqrt

import numpy as np

from polarmap.codes.algebra import Recovery, Results
from polarmap.codes.dtypes import Array, DType, Floats, Indices, Mask
from polarmap.codes.linear import SystematicCode
from polarmap.codes.polar import PolarCode
from polarmap.codes.product import ProductCode
from polarmap.codes.recovery import SystematicRecovery
from polarmap.errors import CodeError


class SymmetricProductCode(SystematicCode):
    """The upper triangle of the grid of a code with itself: n (n + 1) / 2 blocks x_ij, i <= j.

    x_ji is the (conjugate) transpose of x_ij, so an arrival fills two cells of the grid, and what
    the grid needs is all that is needed: the equations of the whole grid split into those of the
    symmetric and of the antisymmetric part of the data, and so do those of the triangle.

    Parameters
    ----------
    factor : PolarCode
        Of the columns of A; the rotation kernel.
    side : int, optional
        Rows and columns of a block, whose entries may be arrays; without it these are numbers.

    Examples
    --------
    >>> code = SymmetricProductCode(PolarCode(4, 3))
    >>> code.n, code.k, code.cells[:7].tolist()
    (10, 6, [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2], [2, 2], [0, 3]])
    """

    assumption = "a product of one block's transpose and another"
    no_integers = "a triangle of {dtype} products cannot be decoded exactly: use the whole grid"
    is_mds = False

    def __init__(self, factor: PolarCode, side: int | None = None) -> None:
        if factor.kernel != "rotation":
            raise CodeError("a triangle of products is coded with the rotation kernel only")
        self.factor, self.kernel, self.side = factor, factor.kernel, side
        self.whole = ProductCode(factor, factor)
        self.n, self.k = factor.n * (factor.n + 1) // 2, factor.k * (factor.k + 1) // 2
        self.name = f"{self.kernel} triangle of {self.factor.n} x {self.factor.n}"

    def __repr__(self) -> str:
        return f"SymmetricProductCode({self.factor!r})"

    @property
    def norm_inf(self) -> float:
        """The largest sum of absolute coefficients of a block."""
        return self.whole.norm_inf

    @cached_property
    def cells(self) -> Indices:
        """Row and column of every block on the grid, (n, 2)."""
        cells = self.whole.cells
        return cells[cells[:, 0] <= cells[:, 1]]

    @cached_property
    def places(self) -> Indices:
        """The numbers on the whole grid of a block and of its transpose, (n, 2)."""
        rows, columns = self.cells.T
        return np.stack([self.whole.places[rows, columns], self.whole.places[columns, rows]], axis=1)

    @cached_property
    def coefficients(self) -> Floats:
        """Parity from data, (n - k, k), of the symmetric parts x_ij + x_ji."""
        data, parity = self.places[: self.k], self.places[self.k :, 0] - self.whole.k
        both = self.whole.coefficients[parity]
        return np.asarray(both[:, data[:, 0]] + both[:, data[:, 1]] * (data[:, 0] != data[:, 1]))

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the missing data blocks when the blocks of the mask `arrived` are there."""
        return SymmetricProductRecovery(self, arrived)


class SymmetricProductRecovery(SystematicRecovery):
    """How to recover the missing data blocks of one arrival pattern on the triangle.

    The whole grid is recovered from the arrivals and their transposes. Left-over equations are those
    of the symmetric parts.
    """

    code: SymmetricProductCode

    def __init__(self, code: SymmetricProductCode, arrived: Mask) -> None:
        super().__init__(code, arrived)
        mask = np.zeros(code.whole.n, bool)
        mask[code.places[arrived]] = True
        self._grid = code.whole.recovery(mask, exact=False)

    @cached_property
    def deficit(self) -> int:
        """0 when the data are determined, else how many arrivals are still needed at the least."""
        return -(-self._grid.deficit // 2)

    @cached_property
    def weights(self) -> Floats:
        """How much of each received block is in a recovered one, (missing, arrived): absolute values.

        The entries of a block and of its transpose have errors of their own.
        """
        whole = self._grid.weights[self._wanted] ** 2
        where = np.zeros((len(whole), self.code.whole.n))
        where[:, self._grid.arrived] = whole
        here, there = self.code.places[self.arrived].T
        return np.asarray(np.sqrt(where[:, here] + where[:, there] * (here != there)))

    @property
    def _wanted(self) -> Indices:
        """The rows that recover our missing blocks among those of the whole grid."""
        return np.asarray(np.searchsorted(self._grid.missing, self.code.places[self.missing, 0]))

    def recover(self, rows: Results, dtype: DType) -> Array:
        """The missing data blocks (len(missing), b) from the flat square blocks that arrived."""
        whole = {}
        for index in self.arrived.tolist():
            here, there = self.code.places[index].tolist()
            whole[there] = transposed(rows[index], self.code.side)
            whole[here] = rows[index]
        return self._grid.recover(whole, dtype)[self._wanted]

    def checkable(self, rows: Results) -> Results:
        """x + x' of each block x that arrived: twice its symmetric part."""
        return {index: row + transposed(row, self.code.side) for index, row in rows.items()}


def transposed(row: Array, side: int | None = None) -> Array:
    """The conjugate transpose of a flat block of so many rows and columns; of one of numbers without `side`.

    >>> transposed(np.array([1, 2j, 3, 4]))
    array([1.-0.j, 3.-0.j, 0.-2.j, 4.-0.j])
    """
    side = side or isqrt(row.size)
    return np.ascontiguousarray(row.reshape(side, side, -1).swapaxes(0, 1).conj()).reshape(-1)
