"""Calls as blocks: they come one by one, and travel with their tickets."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from polarmap.blocks.base import WholeBlocks
from polarmap.executors.base import read_only
from polarmap.worker.parts import MESSAGE
from polarmap.worker.pytree import Layout, Structure

Array = npt.NDArray[Any]


class CallBlocks(WholeBlocks):
    """What each worker gets: the bytes of a call, from `add` to `forget`.

    >>> import numpy as np
    >>> blocks = CallBlocks()
    >>> blocks.add(np.frombuffer(b"abc", np.uint8)), blocks.n, bytes(blocks.leaves(0)[0])
    (0, 1, b'abc')
    """

    source = MESSAGE
    structure: Structure = ("array",)

    def __init__(self) -> None:
        self.n = 0
        self._calls: dict[int, Array] = {}

    def add(self, call: Array) -> int:
        """The number of a new block with these bytes, which nobody changes from now on."""
        self._calls[self.n] = read_only(call)
        self.n += 1
        return self.n - 1

    def forget(self, index: int) -> None:
        """Nobody asks for it any more."""
        del self._calls[index]

    def leaves(self, index: int) -> list[Array]:
        """The bytes of block `index`."""
        return [self._calls[index]]

    def layout(self, index: int) -> Layout:
        """How many there are."""
        return (("|u1", (len(self._calls[index]),)),)
