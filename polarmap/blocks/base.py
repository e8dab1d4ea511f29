"""What most coded blocks have in common: what executors see of them, and what a map needs beside that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.equal import Blocks
from polarmap.code.linear import LinearCode
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Layout, Structure, layout_of

Array = npt.NDArray[Any]


class WholeBlocks:
    """Coded blocks of one piece each, which lie in memory unless it is said where.

    Either `leaves` or `piece` is to be defined.
    """

    structure: Structure
    source: Place | None = None

    def leaves(self, index: int) -> list[Array]:
        """The arrays of block `index`: those of its pieces in a row."""
        return [leaf for number in self.pieces(index) for leaf in self.piece(number)]

    def layout(self, index: int) -> Layout:
        """Dtype and shape of each."""
        return layout_of(self.leaves(index))

    def parts(self, index: int) -> tuple[Part, ...]:
        """Nothing of them lies in storage."""
        raise LookupError(index)

    def pieces(self, index: int) -> Sequence[int]:
        """A block is one piece."""
        return (index,)

    def piece(self, number: int) -> list[Array]:
        """The leaves of a block."""
        return self.leaves(number)

    def release(self) -> None:
        """Nothing is held that could be made again."""


class CodedData(WholeBlocks):
    """n coded blocks, in memory or in storage.

    `coded_map` takes data with a method `coded_blocks() -> CodedData` as it is.

    Attributes
    ----------
    code : LinearCode
        That carries them.
    blocks : Blocks
        The data blocks.
    encode_seconds : float
        Spent on encoding so far.
    unprotected_warning : str
        What is to be said of data that parity cannot carry; empty if there is none.
    code_reason : str
        Why this code carries them, in a sentence; empty where there is nothing to be said.
    """

    encode_seconds = 0.0
    unprotected_warning = code_reason = ""

    def __init__(self, code: LinearCode, blocks: Blocks) -> None:
        self.code, self.blocks = code, blocks
        self.n, self.structure, self._data_count = code.n, blocks.structure, len(code.systematic)

    def coded_blocks(self) -> CodedData:
        """As `coded_map` asks for data that is encoded already."""
        return self

    def layout(self, index: int) -> Layout:
        """Dtype and shape of each array of block `index`, without making it."""
        return self._data_and_parity[index >= self._data_count]

    @cached_property
    def _data_and_parity(self) -> tuple[Layout, Layout]:
        """Layouts of a data block, and of one that is none."""
        data = self.blocks.layout
        return data, tuple((self.code.parity_dtype(np.dtype(name)).str, shape) for name, shape in data)
