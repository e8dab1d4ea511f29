"""Data, an array or a sequence, as k equal blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from polarmap.blocks.array_like import is_array, numpy_dtype, read_leaf
from polarmap.dtypes import Array, check_dtype
from polarmap.errors import CodeError
from polarmap.worker.pytree import Layout, Structure, flatten, is_masked, layout_of, unflatten


class Blocks:
    """k equal blocks, each a list of leaves of one structure.

    Attributes
    ----------
    k : int
    structure : Structure
        Of every block.
    padding : int
        Rows of zeros that fill up the last block of an array whose rows do not divide.
    rows : int or None
        Rows per block of an array that was cut, None for a sequence.
    is_filled_with_zeros : bool
        Whether the rows that fill up the last block are known to be zeros.
    """

    is_filled_with_zeros = True

    def __init__(
        self,
        leaves: Sequence[Sequence[Array]],
        structure: Structure,
        padding: int = 0,
        rows: int | None = None,
    ) -> None:
        self._leaves, self.structure = leaves, structure
        self.k, self.padding, self.rows = len(leaves), padding, rows

    @property
    def short_block(self) -> tuple[int, int] | None:
        """The number of the block that rows of zeros fill up, and how many rows of data it has."""
        return None if self.rows is None or not self.padding else (self.k - 1, self.rows - self.padding)

    @cached_property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The dtypes of the leaves of a block."""
        return [np.dtype(name) for name, _ in self.layout]

    @cached_property
    def layout(self) -> Layout:
        """Dtype and shape of the leaves of a block."""
        return layout_of(self._leaves[0])

    def leaves(self, index: int) -> list[Array]:
        """The arrays of block `index`, shaped as f sees them."""
        return list(self._leaves[index])

    def largest(self, leaf: int) -> int:
        """The largest absolute value of leaf number `leaf`, of integers, in any block."""
        found = 0
        for index in range(self.k):
            array = self.leaves(index)[leaf]
            if array.size:
                found = max(found, int(array.max()), -int(array.min()))
        return found

    def rows_to_try(self, count: int) -> list[Array]:
        """Return so many rows on which f can be tried: the first ones of a block."""
        return [leaf[:count].copy() for leaf in self.leaves(0)]

    def cut_rows(self, leaves: Sequence[Array], rows: int, filled_to: int) -> list[Array]:
        """Return copies of the first `rows` rows of leaves of a block, filled up with rows of zeros."""
        padding = filled_to - rows
        return [
            np.concatenate([leaf[:rows], np.zeros((padding, *leaf.shape[1:]), leaf.dtype)]) for leaf in leaves
        ]

    def stacked(self, leaf: int) -> Array | list[Array]:
        """Leaf number `leaf` of all blocks as k flat rows: one array if memory allows a view."""
        rows = [np.ascontiguousarray(block[leaf]).reshape(-1) for block in self._leaves]
        return _adjoining(rows) if rows[0].nbytes else rows


def cut_array(data: Any, k: int) -> Blocks:
    """An array that `check_array` has found good, cut along its first axis."""
    total = int(data.shape[0])
    rows = -(-total // k)
    kind = "matrix" if isinstance(data, np.matrix) else "array"
    return Blocks([[rows_of_block(data, rows, index)] for index in range(k)], (kind,), rows * k - total, rows)


def rows_of_block(data: Any, rows: int, index: int) -> Array:
    """Rows index*rows.. of the data, contiguous, in native byte order, filled up with zeros."""
    part = np.asarray(data[index * rows : (index + 1) * rows])
    part = np.ascontiguousarray(part, dtype=check_dtype(part.dtype, "the data"))
    if len(part) == rows:
        return part
    filled = np.zeros((rows, *part.shape[1:]), part.dtype)
    filled[: len(part)] = part
    return filled


def cut_sequence(data: Any, blocks: int | None) -> Blocks:
    """A sequence of blocks, which are as many as it is long."""
    is_sequence = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, (str, bytes, dict)) or not is_sequence:
        raise CodeError(
            f"data must be an array or a sequence of equally shaped blocks, not {type(data).__name__}"
        )
    if len(data) == 0:
        raise CodeError("data is an empty sequence: at least one block is needed")
    if blocks is not None and blocks != len(data):
        raise CodeError(f"blocks={blocks}, but the sequence has {len(data)} blocks; leave blocks out")
    try:
        flat = [flatten(block, read_leaf) for block in data]
    except TypeError as error:
        raise CodeError(f"a block cannot be coded: {error}") from error
    structure = flat[0][1]
    first = flat[0][0]
    for index, (leaves, other) in enumerate(flat):
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        if other != structure or shapes != [(leaf.shape, leaf.dtype) for leaf in first]:
            raise CodeError(
                f"block {index} differs from block 0 in structure, shape or dtype: "
                f"{describe_leaves(leaves)} against {describe_leaves(first)}"
            )
    for leaf in first:
        check_dtype(leaf.dtype, "a block")
    native = [
        [np.ascontiguousarray(leaf, leaf.dtype.newbyteorder("=")).reshape(leaf.shape) for leaf in leaves]
        for leaves, _ in flat
    ]
    return Blocks(native, structure)


def _adjoining(rows: list[Array]) -> Array | list[Array]:
    """Rows that lie one after another in memory, as the 2-D array they are."""
    size = rows[0].nbytes
    start = rows[0].__array_interface__["data"][0]
    for index, row in enumerate(rows):
        if row.__array_interface__["data"][0] != start + index * size or row.base is None:
            return rows
    base = rows[0].base
    if any(row.base is not base for row in rows):
        return rows
    shape, strides = (len(rows), rows[0].size), (size, rows[0].itemsize)
    return np.lib.stride_tricks.as_strided(rows[0], shape, strides, writeable=False)


def describe_leaves(leaves: Sequence[Array]) -> str:
    """Dtype and shape of each, for messages."""
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)


DEFAULT_BLOCKS = 24


def dividing_counts(total: int, near: int) -> list[int]:
    """The numbers of blocks next to `near`, below and above, that divide so many rows; not 1.

    >>> dividing_counts(2000, 24), dividing_counts(11, 4), dividing_counts(13, 26)
    ([20, 25], [11], [13])
    """
    divisors = [count for count in range(2, min(total, 64 * near) + 1) if total % count == 0]
    below, above = [one for one in divisors if one < near], [one for one in divisors if one > near]
    return below[-1:] + above[:1]


def most_filled_blocks(total: int, most: int) -> int:
    """Return the largest number of blocks, at most `most`, of which none is empty.

    Blocks have ceil(total / blocks) rows each, but for the last one.

    >>> most_filled_blocks(25, 24), most_filled_blocks(25, 25), most_filled_blocks(10, 6)
    (13, 25, 5)
    """
    rows = -(-total // most)
    return -(-total // rows)


def fewest_filled_blocks(total: int, fewest: int) -> int:
    """Return the smallest number of blocks, at least `fewest`, of which none is empty.

    >>> fewest_filled_blocks(25, 24), fewest_filled_blocks(25, 10), fewest_filled_blocks(10, 6)
    (25, 13, 10)
    """
    while most_filled_blocks(total, fewest) < fewest:
        fewest += 1
    return fewest


def check_filled(total: int, blocks: int) -> None:
    """Raise CodeError if blocks of ceil(total / blocks) rows would leave some of them empty."""
    below = most_filled_blocks(total, blocks)
    if below == blocks:
        return
    rows, above = -(-total // blocks), fewest_filled_blocks(total, blocks)
    raise CodeError(
        f"blocks={blocks} does not fit {total} rows: blocks of {rows} rows each would leave {blocks - below} "
        f"of them empty. Use blocks={below} or blocks={above}"
    )


def default_block_count(total: int, wanted: int, most: int | None = None) -> int:
    """Return how many blocks to cut `total` rows into, none of which is empty.

    A number that divides the rows, if there is one within a quarter of `wanted`, else the nearest one.

    >>> [default_block_count(total, 24) for total in (2000, 1200, 2003, 10, 31)]
    [25, 24, 24, 10, 31]
    >>> default_block_count(2000, 24, most=24), default_block_count(31, 24, most=24)
    (20, 16)
    """
    wanted = min(wanted, total)
    limit = wanted + wanted // 4 if most is None else most
    near = [count for count in range(-(-3 * wanted // 4), limit + 1) if total % count == 0]
    if not near:
        near = [most_filled_blocks(total, wanted)]
        near += [fewest_filled_blocks(total, wanted)] if most is None else []
    return min(near, key=lambda count: (abs(count - wanted), -count))


def check_array(data: Any, name: str = "data") -> None:
    """Refuse an array that cannot be cut into blocks and coded."""
    refuse_masked_and_sparse(data, name)
    check_class_and_dtype(data, name)
    if not data.shape or data.shape[0] == 0:  # an empty HDF5 dataset has none
        raise CodeError(f"data of shape {tuple(data.shape or ())} has no rows to cut into blocks")
    check_dtype(data.dtype, "the data")


def refuse_masked_and_sparse(data: Any, name: str, for_sparse: str = "") -> None:
    """CodeError for what parity blocks cannot be; `for_sparse`: what to use of a sparse matrix."""
    if is_masked(data):
        raise CodeError(f"{name} is a masked array, and parity blocks have no mask: use {name}.filled(0)")
    if hasattr(data, "toarray"):
        takers = ", which only coded_map with linear f, hedged_map, CodedOperator, polarmap.glm and "
        takers = "" if for_sparse else takers + "polarmap.convex take as it is, of scipy.sparse"
        use = for_sparse or f"{name}.toarray()"
        raise CodeError(f"{name} is a sparse {type(data).__name__}{takers}: use {use}")


def check_class_and_dtype(data: Any, name: str = "data") -> None:
    """Refuse arrays of a dtype that numpy does not know, or of a class of their own."""
    kind = type(data)
    if is_array(data) and numpy_dtype(data) is None:
        raise CodeError(
            f"{name} is a {kind.__module__}.{kind.__name__} of dtype {data.dtype}, which numpy does not "
            f"know: use numpy.asarray({name})"
        )
    if isinstance(data, np.ndarray) and kind not in (np.ndarray, np.memmap, np.matrix):
        raise CodeError(f"{name} is a {kind.__name__}, and f would see arrays: use numpy.asarray({name})")


def concatenate(results: Sequence[Any], axis: int) -> Any:
    """Results joined along `axis`."""
    try:
        flat = [flatten(result) for result in results]
    except TypeError as error:
        raise CodeError(f"concatenate() joins results that are arrays: use list(result) ({error})") from error
    if not flat:
        raise CodeError("concatenate() joins results, and there are none: the data was empty")
    if len(flat[0][1]) != 1:
        raise CodeError(
            f"concatenate() joins results that are arrays; f returned {describe_leaves(flat[0][0])} "
            "in a container: use list(result)"
        )
    arrays = [leaves[0] for leaves, _ in flat]
    if arrays[0].ndim == 0:
        return np.stack(arrays)
    try:
        return unflatten(flat[0][1], [np.concatenate(arrays, axis=axis)])
    except ValueError as error:  # of numpy, AxisError among them
        shapes = f"{arrays[0].shape} and {arrays[-1].shape}"
        raise CodeError(f"results of shapes {shapes} cannot be joined along axis {axis}: {error}") from error
