"""Coded blocks that lie in storage already, as the collector and the executors see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import Blocks
from polarmap.code.dtypes import Array
from polarmap.code.polar import PolarCode
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Layout, Structure


class BlockReader(Protocol):
    """Reads the blocks of a stored array where they lie."""

    def read(self, index: int) -> Array:
        """Block `index`, also where it has to be decoded from others."""
        ...

    def read_as_stored(self, index: int) -> Array:
        """The same, but DamagedError if it is not as it was stored."""
        ...


class StoredBlocks(CodedData):
    """The n blocks of a stored array; nothing is read before a block's leaves are asked for.

    Parameters
    ----------
    code : PolarCode
    source : Place
        Where the parts lie.
    parts : list of n tuples of Part
        What each block consists of.
    dtype, shape : of a data block
    padding : int
        Rows of zeros at the end of the last block.
    reader : BlockReader
    """

    def __init__(
        self,
        code: PolarCode,
        source: Place,
        parts: Sequence[tuple[Part, ...]],
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        padding: int,
        reader: BlockReader,
    ) -> None:
        super().__init__(code, _StoredData(code.k, dtype, shape, padding, reader))
        self.source, self._parts, self._reader = source, parts, reader

    def parts(self, index: int) -> tuple[Part, ...]:
        """What block `index` consists of."""
        return self._parts[index]

    def leaves(self, index: int) -> list[Array]:
        """Block `index`, read now."""
        return [self._reader.read(index)]

    def piece(self, number: int) -> list[Array]:
        """A block for a worker that cannot read it itself: damage is an erasure."""
        return [self._reader.read_as_stored(number)]


class _StoredData(Blocks):
    """What is known of the data blocks without reading them."""

    def __init__(
        self, k: int, dtype: np.dtype[Any], shape: tuple[int, ...], padding: int, reader: BlockReader
    ) -> None:
        self.k, self.padding, self.rows = k, padding, shape[0] if shape else None
        self.structure: Structure = ("array",) if shape else ("numpy",)  # one number if it has no axes
        self._layout, self._reader = ((dtype.str, shape),), reader

    @property
    def layout(self) -> Layout:
        """Dtype and shape of the one leaf."""
        return self._layout

    def leaves(self, index: int) -> list[Array]:
        """Data block `index`, read now."""
        return [self._reader.read(index)]
