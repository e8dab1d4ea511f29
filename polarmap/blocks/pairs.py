"""Pairs of coded blocks, one of each factor of a product, as the collector and the executors see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.blocks.equal import Blocks
from polarmap.code.polar import PolarCode
from polarmap.code.product import ProductCode
from polarmap.code.symmetric import SymmetricProductCode
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Structure

Array = npt.NDArray[Any]
Layout = tuple[tuple[str, tuple[int, ...]], ...]

PAIR: Structure = (tuple, (), (("array",), ("array",)))


class CodedPairs:
    """Pairs (A_i, B_j) of coded blocks: the data pairs row by row, then the others.

    Every block of a factor is one piece, stored once for all pairs that it stands in. `triangle`: of
    the pairs of a factor with itself, those with i <= j.
    """

    def __init__(self, left: CodedData, right: CodedData, triangle: bool = False) -> None:
        assert isinstance(left.code, PolarCode) and isinstance(right.code, PolarCode)
        self.left, self.right = left, right
        self.code = SymmetricProductCode(left.code) if triangle else ProductCode(left.code, right.code)
        self._shift = 0 if left is right else left.n  # of the numbers of the pieces of B
        self.blocks = _Pairs(self)
        self.unprotected_warning = self.code_reason = ""  # factors are finite

    @property
    def n(self) -> int:
        """Pairs."""
        return self.code.n

    @property
    def k(self) -> int:
        """Pairs of data blocks."""
        return self.code.k

    @property
    def structure(self) -> Structure:
        """A tuple of two arrays."""
        return PAIR

    @property
    def encode_seconds(self) -> float:
        """Of both factors."""
        return self.left.encode_seconds + (self.right.encode_seconds if self._shift else 0.0)

    def coded_blocks(self) -> CodedPairs:
        """As `coded_map` asks for data that is encoded already."""
        return self

    def leaves(self, index: int) -> list[Array]:
        """The two blocks of pair `index`."""
        row, column = self.code.cells[index].tolist()
        return self.left.leaves(row) + self.right.leaves(column)

    def layout(self, index: int) -> Layout:
        """Dtype and shape of both."""
        row, column = self.code.cells[index].tolist()
        return tuple(self.left.layout(row)) + tuple(self.right.layout(column))

    @property
    def source(self) -> Place | None:
        """Where both factors lie in storage already; None if either is in memory."""
        return self.left.source if self.left.source == self.right.source else None

    def parts(self, index: int) -> tuple[Part, ...]:
        """What both blocks consist of at their source."""
        row, column = self.code.cells[index].tolist()
        return self.left.parts(row) + self.right.parts(column)

    def pieces(self, index: int) -> tuple[int, int]:
        """The row of the grid, and behind all rows its column."""
        row, column = self.code.cells[index].tolist()
        return row, self._shift + column

    def piece(self, number: int) -> list[Array]:
        """A block of one factor."""
        if number < self.left.n:
            return self.left.leaves(number)
        return self.right.leaves(number - self._shift)

    def release(self) -> None:
        """Let go of the parity blocks of both."""
        self.left.release()
        self.right.release()


class _Pairs(Blocks):
    """What is asked of the data pairs."""

    def __init__(self, grid: CodedPairs) -> None:
        self._grid = grid
        self.k, self.structure, self.padding, self.rows = grid.code.k, PAIR, 0, None

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """Of both factors."""
        return self._grid.left.blocks.dtypes + self._grid.right.blocks.dtypes

    def leaves(self, index: int) -> list[Array]:
        """The two blocks of data pair `index`."""
        return self._grid.leaves(index)
