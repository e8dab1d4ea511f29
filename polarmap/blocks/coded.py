"""Coded blocks as maps need them, beside what executors see; and those that lie in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from polarmap.blocks.equal import Blocks
from polarmap.codes.linear_code import LinearCode
from polarmap.dtypes import Array, real_dtype
from polarmap.executors.base import Coded
from polarmap.worker.pytree import Layout


class CodedData(Coded):
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
        self.n, self.structure, self._data_count = code.n, blocks.structure, len(code.systematic_indices)

    def coded_blocks(self) -> CodedData:
        """As `coded_map` asks for data that is encoded already."""
        return self

    def on_blocks(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """f as it is called with blocks as they travel."""
        return f

    def layout(self, index: int) -> Layout:
        """Dtype and shape of each array of block `index`, without making it."""
        return self._data_and_parity[index >= self._data_count]

    @cached_property
    def _data_and_parity(self) -> tuple[Layout, Layout]:
        """Layouts of a data block, and of one that is none."""
        data = self.blocks.layout
        return data, tuple((self.code.parity_dtype(np.dtype(name)).str, shape) for name, shape in data)


class CodedBlocks(CodedData):
    """The n coded blocks of `Blocks`; those that are no data blocks are made when one is asked for.

    `keep`: hold on to these when a map lets go of them, for the next map of the same data.
    """

    def __init__(self, blocks: Blocks, code: LinearCode, keep: bool = False) -> None:
        super().__init__(code, blocks)
        self._keep, self._encoding = keep, threading.Lock()
        self._parity: list[Array] | None = None

    def leaves(self, index: int) -> list[Array]:
        """The arrays of coded block `index`."""
        if index < self._data_count:
            return self.blocks.leaves(index)
        rows = (parity[index - self._data_count] for parity in self._all_parity())
        return [row.reshape(shape) for row, (_, shape) in zip(rows, self.blocks.layout)]

    def get_ready(self) -> None:
        """Choose the numbers of the code."""
        self.code.prepare()

    def release(self) -> None:
        """Let go of the parity blocks; asked for again, they are computed again."""
        with self._encoding:
            if not self._keep:
                self._parity = None

    def _all_parity(self) -> list[Array]:
        """The parity of each leaf; computed by whichever thread asks first."""
        with self._encoding:
            if self._parity is None:
                began = time.perf_counter()
                leaves = range(len(self.blocks.dtypes))
                self._parity = [self._parity_of(leaf) for leaf in leaves]
                self.unprotected_warning = self.unprotected_warning or self._nonfinite_warning(self._parity)
                self.encode_seconds += time.perf_counter() - began
            return self._parity

    def _parity_of(self, leaf: int) -> Array:
        """The coded blocks that are no data blocks, flat."""
        return self.code.encode_parity(self.blocks.stacked(leaf))

    def _nonfinite_warning(self, parity: Sequence[Array]) -> str:
        """What is said of NaN and inf in the mixtures, which are of no use there; nothing without any."""
        for leaf, rows in enumerate(parity):
            if rows.dtype.kind in "fc" and not is_finite(rows.view(real_dtype(rows.dtype))):
                return _describe_nonfinite(self.blocks, leaf)
        return ""


def is_finite(rows: Array) -> bool:
    """Whether rows have no NaN or inf: told by the largest and the smallest, without a mask."""
    return not rows.size or bool(np.isfinite(rows.max()) and np.isfinite(rows.min()))


def _describe_nonfinite(blocks: Blocks, leaf: int) -> str:
    """Where the data is NaN or inf, or its sums are, and what that means for a map."""
    count, first = 0, ""
    for index in range(blocks.k):
        array = blocks.leaves(index)[leaf]
        places = np.argwhere(~np.isfinite(array))
        if len(places) and not count:
            row, *inner = places[0].tolist() or [0]
            whole = f"block {index}" if blocks.rows is None else f"row {index * blocks.rows + row}"
            entry = [row, *inner] if blocks.rows is None else inner
            first = f"{whole}, entry {tuple(entry)}" if entry else whole
        count += len(places)
    return nonfinite_warning(blocks.dtypes[leaf], count, first)


def nonfinite_warning(dtype: np.dtype[Any], count: int, first: str) -> str:
    """What is said of data with so many NaN and inf, or of finite data whose sums are not."""
    what = f"sums of the data overflow {dtype}"
    if count:
        what = f"the data is NaN or inf at {count} place{'s' * (count > 1)}, the first of them in {first}"
    return f"{what}: parity is of no use there, so a result that is missing may not be decodable"
