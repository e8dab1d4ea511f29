"""Coded blocks together with their code: what the collector needs beyond what executors see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from polarmap.code.linear import LinearCode
from polarmap.executors.base import Coded
from polarmap.worker.parts import Part, Place


class DataBlocks(Protocol):
    """What is known of the data blocks of a map.

    k : how many there are.
    rows : of each, if they were cut from an array along its first axis.
    padding : rows of zeros at the end of the last one.
    """

    @property
    def k(self) -> int: ...

    @property
    def rows(self) -> int | None: ...

    @property
    def padding(self) -> int: ...

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """Of the leaves that a code mixes; empty where it mixes none."""
        ...

    def leaves(self, index: int) -> list[npt.NDArray[Any]]:
        """The arrays of data block `index`."""
        ...

    def largest(self, leaf: int) -> int:
        """The largest absolute value of a leaf of integers in any block."""
        ...


class CodedData(Coded, Protocol):
    """n coded blocks, in memory or in storage.

    `coded_map` takes data with a method `coded_blocks() -> CodedData` as it is.
    """

    @property
    def encode_seconds(self) -> float:
        """Spent on encoding so far."""
        ...

    @property
    def unprotected_warning(self) -> str:
        """What is to be said of data that parity cannot carry; empty if there is none."""
        ...

    @property
    def code_reason(self) -> str:
        """Why this code carries them, in a sentence; empty where there is nothing to be said."""
        ...

    @property
    def code(self) -> LinearCode:
        """That carries them."""
        ...

    @property
    def blocks(self) -> DataBlocks:
        """The data blocks."""
        ...


class WholeBlocks:
    """Coded blocks of one piece each, which lie in memory unless it is said where."""

    source: Place | None = None

    def leaves(self, index: int) -> list[npt.NDArray[Any]]:
        """The arrays of block `index`."""
        raise NotImplementedError

    def parts(self, index: int) -> tuple[Part, ...]:
        """Nothing of them lies in storage."""
        raise LookupError(index)

    def pieces(self, index: int) -> Sequence[int]:
        """A block is one piece."""
        return (index,)

    def piece(self, number: int) -> list[npt.NDArray[Any]]:
        """The leaves of a block."""
        return self.leaves(number)

    def release(self) -> None:
        """Nothing is held that could be made again."""
