"""Blocks, outcomes and results of a map with subtasks, cut into those of each subtask and joined again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.base import CodedData, DataBlocks
from polarmap.code.base import Code
from polarmap.errors import CodeError
from polarmap.executors.base import Outcome
from polarmap.worker.parts import Part
from polarmap.worker.pytree import Layout, Structure
from polarmap.worker.run_task import rows

Array = npt.NDArray[Any]


class Rows:
    """Some rows of all coded blocks: coded blocks of the same code."""

    def __init__(self, coded: CodedData, count: int, number: int) -> None:
        self._all, self._count, self._number = coded, count, number
        self.n, self.structure, self.source = coded.n, coded.structure, coded.source

    @property
    def encode_seconds(self) -> float:
        """Of all rows."""
        return self._all.encode_seconds

    @property
    def unprotected_warning(self) -> str:
        """Of all rows."""
        return self._all.unprotected_warning

    @property
    def code_reason(self) -> str:
        """As for the whole blocks."""
        return self._all.code_reason

    @property
    def code(self) -> Code:
        """Of all rows."""
        return self._all.code

    @property
    def blocks(self) -> DataBlocks:
        """These rows of the data blocks."""
        return RowsOfData(self._all.blocks, self._count, self._number)

    def leaves(self, index: int) -> list[Array]:
        """These rows of block `index`."""
        return cut_rows(self._all.leaves(index), self._count, self._number)

    def layout(self, index: int) -> Layout:
        """Dtype and shape of the arrays of the whole block, as executors send it."""
        return self._all.layout(index)

    def parts(self, index: int) -> tuple[Part, ...]:
        """Of the whole block, at its source."""
        return self._all.parts(index)

    def pieces(self, index: int) -> Sequence[int]:
        """Of the whole block."""
        return self._all.pieces(index)

    def piece(self, number: int) -> list[Array]:
        """The leaves of a piece, whole."""
        return self._all.piece(number)

    def release(self) -> None:
        """All rows are released at once."""


class RowsOfData:
    """Some rows of all data blocks."""

    def __init__(self, blocks: DataBlocks, count: int, number: int) -> None:
        self._blocks, self._count, self._number = blocks, count, number
        self.k, self.dtypes, self.rows, self.padding = blocks.k, blocks.dtypes, None, 0

    def largest(self, leaf: int) -> int:
        """Of all rows, which bounds that of these."""
        return self._blocks.largest(leaf)

    def leaves(self, index: int) -> list[Array]:
        """These rows of data block `index`."""
        return cut_rows(self._blocks.leaves(index), self._count, self._number)


def cut_rows(leaves: Sequence[Array], count: int, number: int) -> list[Array]:
    """Of each array the rows that a subtask takes."""
    return [leaf[rows(len(leaf), count, number)] for leaf in leaves]


def check_rows(coded: CodedData, subtasks: int) -> None:
    """CodeError for blocks that cannot be cut into so many subtasks."""
    for name, shape in coded.layout(0):
        if not shape or shape[0] < subtasks:
            raise CodeError(
                f"Subtasks({subtasks}) cuts every array of a block along its first axis, and one is {name} "
                f"of shape {tuple(shape)}: use fewer"
            )


def by_subtask(outcome: Outcome) -> list[tuple[int, Outcome]]:
    """The results of subtasks that an outcome holds, each with the number of its codeword."""
    assert outcome.leaves is not None
    assert outcome.structure is not None
    found, first = [], 0
    for subtask, structure in zip(outcome.subtasks, outcome.structure[2], strict=True):
        size = count_leaves(structure)
        part = outcome._replace(
            leaves=outcome.leaves[first : first + size], structure=structure, subtasks=(), over=True
        )
        found.append((subtask, part))
        first += size
    return found


def count_leaves(structure: Structure) -> int:
    """Of a tree of this structure."""
    return 1 if len(structure) == 1 else sum(map(count_leaves, structure[2]))


def joined(parts: Sequence[list[list[Array]]]) -> list[list[Array]]:
    """Results of the data blocks from those of their subtasks."""
    if len(parts) == 1:
        return parts[0]
    kinds = [[leaf.shape[1:] for leaf in part[0]] for part in parts]
    if any(kind != kinds[0] for kind in kinds) or any(not leaf.ndim for part in parts for leaf in part[0]):
        raise CodeError(
            "f of the pieces of a block gave results that cannot be joined along axis 0: leave Subtasks out "
            "for this f, unless workers returned garbage"
        )
    return [
        [np.concatenate(leaves) for leaves in zip(*(part[block] for part in parts), strict=True)]
        for block in range(len(parts[0]))
    ]
