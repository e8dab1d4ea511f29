"""Coded blocks that lie in storage already, as the collector and the executors see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from polarmap.blocks.base import WholeBlocks
from polarmap.blocks.equal import Blocks
from polarmap.code.polar import PolarCode
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Structure

Array = npt.NDArray[Any]
Layout = tuple[tuple[str, tuple[int, ...]], ...]


class BlockReader(Protocol):
    """Reads the blocks of a stored array where they lie."""

    def read(self, index: int) -> Array:
        """Block `index`, also where it has to be decoded from others."""
        ...

    def read_as_stored(self, index: int) -> Array:
        """The same, but DamagedError if it is not as it was stored."""
        ...


class StoredBlocks(WholeBlocks):
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

    encode_seconds = 0.0
    unprotected_warning = code_reason = ""

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
        self.code, self.source, self._parts = code, source, parts
        self._reader, self._shape = reader, shape
        self._layouts = [((one.str, shape),) for one in (dtype, code.parity_dtype(dtype))]
        rows = shape[0] if shape else None
        self.blocks = _StoredData(code.k, dtype, reader, padding, rows, self.structure)

    def coded_blocks(self) -> StoredBlocks:
        """As `coded_map` asks for data that is encoded already."""
        return self

    @property
    def n(self) -> int:
        """Coded blocks."""
        return self.code.n

    @property
    def k(self) -> int:
        """Data blocks."""
        return self.code.k

    @property
    def structure(self) -> Structure:
        """Of every block: one array, or one number if it has no axes."""
        return ("array",) if self._shape else ("numpy",)

    def parts(self, index: int) -> tuple[Part, ...]:
        """What block `index` consists of."""
        return self._parts[index]

    def leaves(self, index: int) -> list[Array]:
        """Block `index`, read now."""
        return [self._reader.read(index)]

    def layout(self, index: int) -> Layout:
        """Dtype and shape of block `index`."""
        return self._layouts[index >= self.code.k]

    def piece(self, number: int) -> list[Array]:
        """A block for a worker that cannot read it itself: damage is an erasure."""
        return [self._reader.read_as_stored(number)]


class _StoredData(Blocks):
    """What is known of the data blocks without reading them."""

    def __init__(
        self,
        k: int,
        dtype: np.dtype[Any],
        reader: BlockReader,
        padding: int,
        rows: int | None,
        structure: Structure,
    ) -> None:
        self.k, self.structure, self.padding, self.rows = k, structure, padding, rows
        self._dtype, self._reader = dtype, reader

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """Of the one leaf."""
        return [self._dtype]

    def leaves(self, index: int) -> list[Array]:
        """Data block `index`, read now."""
        return [self._reader.read(index)]
