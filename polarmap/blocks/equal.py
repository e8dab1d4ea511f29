"""Data, an array or a sequence, as k equal blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from polarmap.blocks.array_like import get_numpy_dtype, is_array_like, load_block_array
from polarmap.dtypes import Array, check_supported_dtype
from polarmap.errors import CodeError
from polarmap.worker.pytree import Layout, Structure, flatten, get_layout, is_masked_array, unflatten


class DataBlocks:
    """k equal blocks, each a list of leaves of one structure.

    Attributes
    ----------
    k : int
    structure : Structure
        Of every block.
    n_padding_rows : int
        Rows of zeros that fill up the last block of an array whose rows do not divide.
    rows_per_block : int or None
        Rows per block of an array that was cut, None for a sequence.
    has_zero_padding : bool
        Whether the rows that fill up the last block are known to be zeros.
    """

    has_zero_padding = True

    def __init__(
        self,
        leaves_by_block: Sequence[Sequence[Array]],
        structure: Structure,
        n_padding_rows: int = 0,
        rows_per_block: int | None = None,
    ) -> None:
        self._leaves_by_block, self.structure, self.k = leaves_by_block, structure, len(leaves_by_block)
        self.n_padding_rows, self.rows_per_block = n_padding_rows, rows_per_block

    @property
    def padded_block(self) -> tuple[int, int] | None:
        """The number of the block that rows of zeros fill up, and how many rows of data it has."""
        if self.rows_per_block is None or not self.n_padding_rows:
            return None
        return self.k - 1, self.rows_per_block - self.n_padding_rows

    @cached_property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The dtypes of the leaves of a block."""
        return [np.dtype(name) for name, _ in self.block_layout]

    @cached_property
    def block_layout(self) -> Layout:
        """Dtype and shape of the leaves of a block."""
        return get_layout(self._leaves_by_block[0])

    def block_leaves(self, block_index: int) -> list[Array]:
        """The arrays of block `block_index`, shaped as f sees them."""
        return list(self._leaves_by_block[block_index])

    def compute_max_abs(self, leaf_index: int) -> int:
        """The largest absolute value of leaf number `leaf_index`, of integers, in any block."""
        maximum = 0
        for block_index in range(self.k):
            array = self.block_leaves(block_index)[leaf_index]
            if array.size:
                maximum = max(maximum, int(array.max()), -int(array.min()))
        return maximum

    def sample_rows(self, n_rows: int) -> list[Array]:
        """Return so many rows on which f can be tried: the first ones of a block."""
        return [leaf[:n_rows].copy() for leaf in self.block_leaves(0)]

    def copy_padded_rows(self, leaves: Sequence[Array], n_rows: int, padded_length: int) -> list[Array]:
        """Return copies of the first `n_rows` rows of leaves of a block, filled up with rows of zeros."""
        n_padding_rows = padded_length - n_rows
        return [
            np.concatenate([leaf[:n_rows], np.zeros((n_padding_rows, *leaf.shape[1:]), leaf.dtype)])
            for leaf in leaves
        ]

    def stack_leaf_as_rows(self, leaf_index: int) -> Array | list[Array]:
        """Leaf number `leaf_index` of all blocks as k flat rows: one array if memory allows a view."""
        rows = [np.ascontiguousarray(block[leaf_index]).reshape(-1) for block in self._leaves_by_block]
        return _as_single_array(rows) if rows[0].nbytes else rows


def cut_array_into_blocks(data: Any, k: int) -> DataBlocks:
    """An array that `check_encodable_array` has found good, cut along its first axis."""
    n_rows = int(data.shape[0])
    rows_per_block = -(-n_rows // k)
    leaf_type = "matrix" if isinstance(data, np.matrix) else "array"
    return DataBlocks(
        [[copy_block_rows(data, rows_per_block, block_index)] for block_index in range(k)],
        (leaf_type,),
        rows_per_block * k - n_rows,
        rows_per_block,
    )


def copy_block_rows(data: Any, rows_per_block: int, block_index: int) -> Array:
    """Rows index*rows.. of the data, contiguous, in native byte order, filled up with zeros."""
    block = np.asarray(data[block_index * rows_per_block : (block_index + 1) * rows_per_block])
    block = np.ascontiguousarray(block, dtype=check_supported_dtype(block.dtype, "the data"))
    if len(block) == rows_per_block:
        return block
    padded_block = np.zeros((rows_per_block, *block.shape[1:]), block.dtype)
    padded_block[: len(block)] = block
    return padded_block


def cut_sequence_into_blocks(data: Any, n_blocks: int | None) -> DataBlocks:
    """A sequence of blocks, which are as many as it is long."""
    is_sequence = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, (str, bytes, dict)) or not is_sequence:
        raise CodeError(
            f"data must be an array or a sequence of equally shaped blocks, not {type(data).__name__}"
        )
    if len(data) == 0:
        raise CodeError("data is an empty sequence: at least one block is needed")
    if n_blocks is not None and n_blocks != len(data):
        raise CodeError(f"blocks={n_blocks}, but the sequence has {len(data)} blocks; leave blocks out")
    try:
        flattened = [flatten(block, load_block_array) for block in data]
    except TypeError as error:
        raise CodeError(f"a block cannot be coded: {error}") from error
    structure = flattened[0][1]
    first_leaves = flattened[0][0]
    for block_index, (leaves, other_structure) in enumerate(flattened):
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        if other_structure != structure or shapes != [(leaf.shape, leaf.dtype) for leaf in first_leaves]:
            raise CodeError(
                f"block {block_index} differs from block 0 in structure, shape or dtype: "
                f"{describe_leaves(leaves)} against {describe_leaves(first_leaves)}"
            )
    for leaf in first_leaves:
        check_supported_dtype(leaf.dtype, "a block")
    native_leaves = [
        [np.ascontiguousarray(leaf, leaf.dtype.newbyteorder("=")).reshape(leaf.shape) for leaf in leaves]
        for leaves, _ in flattened
    ]
    return DataBlocks(native_leaves, structure)


def _as_single_array(rows: list[Array]) -> Array | list[Array]:
    """Rows that lie one after another in memory, as the 2-D array they are."""
    row_bytes = rows[0].nbytes
    start = rows[0].__array_interface__["data"][0]
    for index, row in enumerate(rows):
        if row.__array_interface__["data"][0] != start + index * row_bytes or row.base is None:
            return rows
    base = rows[0].base
    if any(row.base is not base for row in rows):
        return rows
    shape, strides = (len(rows), rows[0].size), (row_bytes, rows[0].itemsize)
    return np.lib.stride_tricks.as_strided(rows[0], shape, strides, writeable=False)


def describe_leaves(leaves: Sequence[Array]) -> str:
    """Dtype and shape of each, for messages."""
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)


DEFAULT_N_BLOCKS = 24


def find_divisors_near(n_rows: int, target: int) -> list[int]:
    """The numbers of blocks next to `target`, below and above, that divide so many rows; not 1.

    >>> find_divisors_near(2000, 24), find_divisors_near(11, 4), find_divisors_near(13, 26)
    ([20, 25], [11], [13])
    """
    divisors = [count for count in range(2, min(n_rows, 64 * target) + 1) if n_rows % count == 0]
    smaller = [divisor for divisor in divisors if divisor < target]
    larger = [divisor for divisor in divisors if divisor > target]
    return smaller[-1:] + larger[:1]


def compute_max_nonempty_blocks(n_rows: int, max_blocks: int) -> int:
    """Return the largest number of blocks, at most `max_blocks`, of which none is empty.

    Blocks have ceil(total / blocks) rows each, but for the last one.

    >>> [compute_max_nonempty_blocks(*counts) for counts in ((25, 24), (25, 25), (10, 6))]
    [13, 25, 5]
    """
    rows_per_block = -(-n_rows // max_blocks)
    return -(-n_rows // rows_per_block)


def compute_min_nonempty_blocks(n_rows: int, min_blocks: int) -> int:
    """Return the smallest number of blocks, at least `min_blocks`, of which none is empty.

    >>> [compute_min_nonempty_blocks(*counts) for counts in ((25, 24), (25, 10), (10, 6))]
    [25, 13, 10]
    """
    while compute_max_nonempty_blocks(n_rows, min_blocks) < min_blocks:
        min_blocks += 1
    return min_blocks


def check_no_empty_blocks(n_rows: int, n_blocks: int) -> None:
    """Raise CodeError if blocks of ceil(total / blocks) rows would leave some of them empty."""
    smaller_n_blocks = compute_max_nonempty_blocks(n_rows, n_blocks)
    if smaller_n_blocks == n_blocks:
        return
    rows_per_block, larger_n_blocks = -(-n_rows // n_blocks), compute_min_nonempty_blocks(n_rows, n_blocks)
    raise CodeError(
        f"blocks={n_blocks} does not fit {n_rows} rows: blocks of {rows_per_block} rows each would "
        f"leave {n_blocks - smaller_n_blocks} of them empty. Use "
        f"blocks={smaller_n_blocks} or blocks={larger_n_blocks}"
    )


def choose_default_n_blocks(n_rows: int, target: int, max_blocks: int | None = None) -> int:
    """Return how many blocks to cut `n_rows` rows into, none of which is empty.

    A number that divides the rows, if there is one within a quarter of `target`, else the nearest one.

    >>> [choose_default_n_blocks(total, 24) for total in (2000, 1200, 2003, 10, 31)]
    [25, 24, 24, 10, 31]
    >>> choose_default_n_blocks(2000, 24, max_blocks=24), choose_default_n_blocks(31, 24, max_blocks=24)
    (20, 16)
    """
    target = min(target, n_rows)
    limit = target + target // 4 if max_blocks is None else max_blocks
    candidates = [count for count in range(-(-3 * target // 4), limit + 1) if n_rows % count == 0]
    if not candidates:
        candidates = [compute_max_nonempty_blocks(n_rows, target)]
        candidates += [compute_min_nonempty_blocks(n_rows, target)] if max_blocks is None else []
    return min(candidates, key=lambda count: (abs(count - target), -count))


def check_encodable_array(data: Any, argument_name: str = "data") -> None:
    """Refuse an array that cannot be cut into blocks and coded."""
    check_not_masked_or_sparse(data, argument_name)
    check_array_class_and_dtype(data, argument_name)
    if not data.shape or data.shape[0] == 0:  # an empty HDF5 dataset has none
        raise CodeError(f"data of shape {tuple(data.shape or ())} has no rows to cut into blocks")
    check_supported_dtype(data.dtype, "the data")


def check_not_masked_or_sparse(data: Any, argument_name: str, sparse_advice: str = "") -> None:
    """CodeError for what parity blocks cannot be; `sparse_advice`: what to use of a sparse matrix."""
    if is_masked_array(data):
        raise CodeError(
            f"{argument_name} is a masked array, and parity blocks have no mask: "
            f"use {argument_name}.filled(0)"
        )
    if hasattr(data, "toarray"):
        accepted_by = ", which only coded_map with linear f, hedged_map, CodedOperator, polarmap.glm and "
        accepted_by = "" if sparse_advice else accepted_by + "polarmap.convex take as it is, of scipy.sparse"
        advice = sparse_advice or f"{argument_name}.toarray()"
        raise CodeError(f"{argument_name} is a sparse {type(data).__name__}{accepted_by}: use {advice}")


def check_array_class_and_dtype(data: Any, argument_name: str = "data") -> None:
    """Refuse arrays of a dtype that numpy does not know, or of a class of their own."""
    array_class = type(data)
    if is_array_like(data) and get_numpy_dtype(data) is None:
        raise CodeError(
            f"{argument_name} is a {array_class.__module__}.{array_class.__name__} of dtype {data.dtype}, "
            f"which numpy does not know: use numpy.asarray({argument_name})"
        )
    if isinstance(data, np.ndarray) and array_class not in (np.ndarray, np.memmap, np.matrix):
        raise CodeError(
            f"{argument_name} is a {array_class.__name__}, and f would see arrays: "
            f"use numpy.asarray({argument_name})"
        )


def concatenate_results(results: Sequence[Any], axis: int) -> Any:
    """Results joined along `axis`."""
    try:
        flattened = [flatten(result) for result in results]
    except TypeError as error:
        raise CodeError(f"concatenate() joins results that are arrays: use list(result) ({error})") from error
    if not flattened:
        raise CodeError("concatenate() joins results, and there are none: the data was empty")
    if len(flattened[0][1]) != 1:
        raise CodeError(
            f"concatenate() joins results that are arrays; f returned {describe_leaves(flattened[0][0])} "
            "in a container: use list(result)"
        )
    arrays = [leaves[0] for leaves, _ in flattened]
    if arrays[0].ndim == 0:
        return np.stack(arrays)
    try:
        return unflatten(flattened[0][1], [np.concatenate(arrays, axis=axis)])
    except ValueError as error:  # of numpy, AxisError among them
        shapes = f"{arrays[0].shape} and {arrays[-1].shape}"
        raise CodeError(f"results of shapes {shapes} cannot be joined along axis {axis}: {error}") from error
