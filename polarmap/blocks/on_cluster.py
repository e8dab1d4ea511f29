"""Coded blocks of data that stay on the cluster where they lie: parity is made there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks.array_like import as_array_like
from polarmap.blocks.coded import CodedData, nonfinite_warning
from polarmap.blocks.equal import Blocks
from polarmap.codes.linear_code import LinearCode
from polarmap.dtypes import Array, check_dtype
from polarmap.errors import CodeError
from polarmap.executors.cluster_data import CutData
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Layout, layout_bytes

STRIPES = 16  # tasks that make parity, so that many workers do
STRIPE_BYTES = 256 << 20  # that one of them may have, which takes more tasks


class Described(NamedTuple):
    """A block on the cluster.

    is_piece : whether it is the one piece of which it is made, which may stay as it is.
    nonfinite : how many of its entries are NaN or inf; first : the first of these.
    largest : absolute value, of integers.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_piece: bool
    nonfinite: int
    first: tuple[int, ...]
    largest: int

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class ClusterBlocks(Blocks):
    """k equal blocks that lie on a cluster. One that is asked for here is fetched."""

    def __init__(self, cut: CutData) -> None:
        self.cluster, k = cut.cluster, len(cut.pieces)
        rows = None if cut.total is None else -(-cut.total // k)
        made = [self.cluster.call(as_block, rows, *pieces, outputs=2) for pieces in cut.pieces]
        self.described: list[Described] = self.cluster.fetch([told for _, told in made])
        told = zip(cut.pieces, made, self.described)
        self.references = [pieces[0] if one.is_piece else block for pieces, (block, _), one in told]
        first = self.described[0]
        for index, one in enumerate(self.described):
            if one[:2] != first[:2]:
                raise CodeError(
                    f"block {index} differs from block 0 in shape or dtype: {one} against {first}"
                )
        self._layout = ((check_dtype(first.dtype, "the data").str, first.shape),)
        super().__init__([[]] * k, ("array",), 0 if rows is None else k * rows - (cut.total or 0), rows)

    @property
    def layout(self) -> Layout:
        """Dtype and shape of each block."""
        return self._layout

    def leaves(self, index: int) -> list[Array]:
        """Block `index`, fetched."""
        return self.cluster.fetch(self.references[index : index + 1])

    def largest(self, leaf: int) -> int:
        """The largest absolute value of a block, of integers."""
        return max(one.largest for one in self.described)

    @property
    def nonfinite_warning(self) -> str:
        """What is to be said of NaN and inf among the data; nothing without any."""
        count = sum(one.nonfinite for one in self.described)
        places = [
            f"block {index}, entry {one.first}" for index, one in enumerate(self.described) if one.nonfinite
        ]
        return nonfinite_warning(self.dtypes[0], count, places[0]) if places else ""


class CodedOnCluster(CodedData):
    """The n coded blocks of data on a cluster; those that are no data blocks are made when one is asked for.

    Each task that makes them has the same columns of all blocks, so that every number travels once.
    """

    blocks: ClusterBlocks

    def __init__(self, blocks: ClusterBlocks, code: LinearCode) -> None:
        super().__init__(code, blocks)
        self.source = Place(blocks.cluster.kind, "")
        self.unprotected_warning = blocks.nonfinite_warning
        self._lock = threading.Lock()
        self._parity: list[Any] = []
        self._names: dict[bool, list[Any]] = {}  # of data blocks, and of the others

    def reference(self, index: int) -> Any:
        """What tasks of the engine take in the place of block `index`."""
        if index < self._data_count:
            return self.blocks.references[index]
        with self._lock:
            self._parity = self._parity or self._made_parity()
            return self._parity[index - self._data_count]

    def leaves(self, index: int) -> list[Array]:
        """Block `index`, fetched."""
        return self.blocks.cluster.fetch([self.reference(index)])

    def parts(self, index: int) -> tuple[Part, ...]:
        """What workers that stay ask the engine for."""
        is_data, layout = index < self._data_count, self.layout(index)
        self.reference(index)  # so that it is there
        with self._lock:
            if is_data not in self._names:
                named = self.blocks.references if is_data else self._parity
                self._names[is_data] = self.blocks.cluster.names(named)
        name = self._names[is_data][index if is_data else index - self._data_count]
        return (Part(name, layout_bytes(layout)),)

    def _made_parity(self) -> list[Any]:
        cluster, [(_, shape)] = self.blocks.cluster, self.blocks.layout
        count = self.n - self._data_count
        room = -(-self.blocks.k * layout_bytes(self.blocks.layout) // STRIPE_BYTES)
        stripes = max(1, min(prod(shape), max(room, min(count, STRIPES))))
        cut = [cluster.call(stripes_of, one, stripes, outputs=stripes) for one in self.blocks.references]
        made = [cluster.call(parity_of, self.code, *columns, outputs=count) for columns in zip(*cut)]
        return [cluster.call(joined, shape, *of_block)[0] for of_block in zip(*made)]


# --- on the cluster -----------------------------------------------------------------------------


def as_block(rows: int | None, *pieces: Any) -> tuple[Array | None, Described]:
    """A block, of so many rows, and what is known of it; None in its place if it is its one piece."""
    arrays = [_as_array(piece) for piece in pieces]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    missing = 0 if rows is None else rows - len(array)
    if missing:
        array = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    block = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    odd = np.argwhere(~np.isfinite(block)) if block.dtype.kind in "fc" else np.zeros((0, 0), int)
    first = tuple(odd[0].tolist()) if len(odd) else ()
    is_piece = isinstance(pieces[0], np.ndarray) and block.base is pieces[0]
    is_integer = block.dtype.kind in "iu" and block.size
    largest = max(int(block.max()), -int(block.min())) if is_integer else 0
    told = Described(block.dtype, block.shape, is_piece, len(odd), first, largest)
    return None if is_piece else block, told


def _as_array(piece: Any) -> Array:
    """A piece as an array; the columns of a table side by side."""
    if isinstance(piece, dict):
        columns = list(piece.values())
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    return np.asarray(as_array_like(piece, "a block"))


def stripes_of(block: Array, count: int) -> Any:
    """So many runs of the numbers of a block, of nearly equal length."""
    return _items(np.array_split(block.reshape(-1), count))


def parity_of(code: LinearCode, *stripes: Array) -> Any:
    """The same stripe of each of the blocks that are no data blocks."""
    return _items(list(code.encode_parity(stripes)))


def joined(shape: tuple[int, ...], *stripes: Array) -> Array:
    """A block of its stripes."""
    return np.concatenate(stripes).reshape(shape)


def _items(found: Sequence[Array]) -> Any:
    """As engines take several outputs, or one."""
    return found if len(found) > 1 else found[0]
