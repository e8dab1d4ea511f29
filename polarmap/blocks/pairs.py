"""Pair coded blocks of two matrices A and B, as inputs of the tasks of a coded matrix product A B.

    task (i, j) receives the pair (A_i, B_j) and returns a block of the product

Each block of A or B is stored only once, although several pairs contain it. It is called a component.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import DataBlocks
from polarmap.codes.polar import PolarCode
from polarmap.codes.product import ProductCode
from polarmap.codes.symmetric import SymmetricProductCode
from polarmap.dtypes import Array
from polarmap.worker.pytree import Layout, Structure
from polarmap.worker.segments import Segment

PAIR_STRUCTURE: Structure = (tuple, (), (("array",), ("array",)))


class CodedPairs(CodedData):
    """The inputs of the tasks that compute a matrix product A B: each task receives a pair of coded blocks.

    Both factors are cut into blocks and encoded. A pair (A_i, B_j) consists of a block of A and a block of B.
    The pairs of data blocks come first, row by row, followed by all pairs that include a parity block.

    The caller must check that the factors contain no NaN or inf, because no warning is issued here.

    Parameters
    ----------
    left, right : CodedData
        The coded blocks of the two factors.
    upper_triangle : bool
        Whether to use only the pairs with i <= j. This is possible if both factors are the same.
    """

    code: ProductCode | SymmetricProductCode

    def __init__(self, left: CodedData, right: CodedData, upper_triangle: bool = False) -> None:
        self.left, self.right = left, right
        # Blocks are numbered consecutively, and the blocks of B follow the blocks of A. This is the number of
        # the first block of B.
        self._right_offset = 0 if left is right else left.n
        block_rows = left.block_layout(0)[0][1][0]
        left_code, right_code = cast(PolarCode, left.code), cast(PolarCode, right.code)
        code = (
            SymmetricProductCode(left_code, block_rows)
            if upper_triangle
            else ProductCode(left_code, right_code)
        )
        super().__init__(code, _PairedDataBlocks(self, code.k))
        self.location = left.location if left.location == right.location else None

    @property
    def encode_seconds(self) -> float:  # type: ignore[override]
        """The time spent on encoding both factors so far, in seconds."""
        return self.left.encode_seconds + (self.right.encode_seconds if self._right_offset else 0.0)

    def block_layout(self, task: int) -> Layout:
        """Return the dtype and shape of both blocks of pair `task`."""
        row, column = self.code.grid_coordinates[task].tolist()
        return self.left.block_layout(row) + self.right.block_layout(column)

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """Return the storage locations of both blocks of pair `task`."""
        row, column = self.code.grid_coordinates[task].tolist()
        return self.left.block_segments(row) + self.right.block_segments(column)

    def block_components(self, task: int) -> tuple[int, int]:
        """Return the numbers of the two blocks in pair `task`: the block of A, and then the block of B.

        The blocks of A are numbered from 0, and the blocks of B follow. If both factors are the same matrix,
        its blocks are numbered only once.
        """
        row, column = self.code.grid_coordinates[task].tolist()
        return row, self._right_offset + column

    def component_leaves(self, component: int) -> list[Array]:
        """Return the block of A or B with the number `component`, as a list of one array.

        See `block_components` for the numbers.
        """
        if component < self.left.n:
            return self.left.block_leaves(component)
        return self.right.block_leaves(component - self._right_offset)

    def on_damage_found(self) -> None:
        """Notify both factors that a worker has found a stored block damaged."""
        self.left.on_damage_found()
        self.right.on_damage_found()

    def release_memory(self) -> None:
        """Free the memory of the parity blocks of both factors."""
        self.left.release_memory()
        self.right.release_memory()


class _PairedDataBlocks(DataBlocks):
    """The pairs that consist of two data blocks, as the `DataBlocks` of a map over pairs.

    They are the first pairs of `coded_pairs`, which also contains the pairs with parity blocks.
    """

    def __init__(self, coded_pairs: CodedPairs, k: int) -> None:
        self._coded_pairs, self.k, self.structure = coded_pairs, k, PAIR_STRUCTURE
        self.n_padding_rows, self.rows_per_block = 0, None

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The dtypes of both factors."""
        return self._coded_pairs.left.data_blocks.dtypes + self._coded_pairs.right.data_blocks.dtypes

    @property
    def argument_layout(self) -> Layout:
        """The dtypes and shapes of both blocks of a pair."""
        return self._coded_pairs.block_layout(0)

    def block_leaves(self, block_index: int) -> list[Array]:
        """Return the block of A and the block of B in pair `block_index` of data blocks."""
        return self._coded_pairs.block_leaves(block_index)
