"""Cut data into k equal blocks.

    array of 10 rows, k = 4  -->  blocks of 3, 3, 3 and 1 + 2 rows; the last 2 rows are zeros
    sequence of k blocks     -->  the same blocks, which must have equal structure, shapes and dtypes

This module also validates the arrays to encode, and joins the results of a map.
"""

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
    """The k data blocks of a map. Each block is stored as a list of arrays (its leaves).

    Attributes
    ----------
    k : int
        The number of blocks.
    structure : Structure
        The way the leaves of each block are nested in tuples, lists and dicts.
    n_padding_rows : int
        The number of padding rows at the end of the last block. 0 if k divides the number of rows.
    rows_per_block : int or None
        The number of rows per block if an array was cut, or None for a sequence of blocks.
    has_zero_padding : bool
        Whether all padding rows are known to be zeros.
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
        """The index of the block that ends with padding rows, and the number of its rows that are data.

        Only the last block can be padded. None if no block is padded.
        """
        if self.rows_per_block is None or not self.n_padding_rows:
            return None
        return self.k - 1, self.rows_per_block - self.n_padding_rows

    @cached_property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The dtypes of the arrays (leaves) in a block."""
        return [np.dtype(name) for name, _ in self.block_layout]

    @cached_property
    def block_layout(self) -> Layout:
        """The dtype and shape of each array (leaf) in a block."""
        return get_layout(self._leaves_by_block[0])

    @property
    def argument_layout(self) -> Layout:
        """The dtype and shape of each array that the mapped function receives as its argument."""
        return self.block_layout

    def block_leaves(self, block_index: int) -> list[Array]:
        """Return the arrays of block `block_index`, shaped as the mapped function receives them."""
        return list(self._leaves_by_block[block_index])

    def compute_max_abs(self, leaf_index: int) -> int:
        """Return the largest absolute value in array (leaf) number `leaf_index` of all blocks.

        The array must contain integers.
        """
        maximum = 0
        for block_index in range(self.k):
            array = self.block_leaves(block_index)[leaf_index]
            if array.size:
                maximum = max(maximum, int(array.max()), -int(array.min()))
        return maximum

    def sample_rows(self, n_rows: int) -> list[Array]:
        """Return a copy of the first `n_rows` rows of block 0, for a trial call of the mapped function."""
        return [leaf[:n_rows].copy() for leaf in self.block_leaves(0)]

    def copy_padded_rows(self, leaves: Sequence[Array], n_rows: int, padded_length: int) -> list[Array]:
        """Copy the first `n_rows` rows of each array (leaf), and zero-pad them to `padded_length` rows."""
        n_padding_rows = padded_length - n_rows
        return [
            np.concatenate([leaf[:n_rows], np.zeros((n_padding_rows, *leaf.shape[1:]), leaf.dtype)])
            for leaf in leaves
        ]

    def stack_leaf_as_rows(self, leaf_index: int) -> Array | list[Array]:
        """Return array (leaf) number `leaf_index` of each block, flattened, as the input of an encoder.

        The k flat arrays are the rows of a 2-D array if it can be created without a copy, and a list
        otherwise.
        """
        rows = [np.ascontiguousarray(block[leaf_index]).reshape(-1) for block in self._leaves_by_block]
        return _as_single_array(rows) if rows[0].nbytes else rows


def cut_array_into_blocks(data: Any, k: int) -> DataBlocks:
    """Cut an array into k blocks along its first axis. The array must pass `check_encodable_array`."""
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
    """Return the rows of block `block_index` as a contiguous array in native byte order.

    If the last block has fewer than `rows_per_block` rows, it is padded with rows of zeros.
    """
    block = np.asarray(data[block_index * rows_per_block : (block_index + 1) * rows_per_block])
    block = np.ascontiguousarray(block, dtype=check_supported_dtype(block.dtype, "the data"))
    if len(block) == rows_per_block:
        return block
    padded_block = np.zeros((rows_per_block, *block.shape[1:]), block.dtype)
    padded_block[: len(block)] = block
    return padded_block


def cut_sequence_into_blocks(data: Any, n_blocks: int | None) -> DataBlocks:
    """Convert a sequence of blocks to DataBlocks. Raise CodeError if their shapes or dtypes differ."""
    is_sequence = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, (str, bytes, dict)) or not is_sequence:
        raise CodeError(
            f"data must be an array or a sequence of equally shaped blocks, not {type(data).__name__}"
        )
    if len(data) == 0:
        raise CodeError("data is an empty sequence: at least one block is needed")
    if n_blocks is not None and n_blocks != len(data):
        raise CodeError(f"blocks={n_blocks}, but the sequence has {len(data)} blocks: leave blocks out")
    try:
        flattened = [flatten(block, load_block_array) for block in data]
    except TypeError as error:
        raise CodeError(f"a block cannot be encoded: {error}") from error
    structure = flattened[0][1]
    first_leaves = flattened[0][0]
    first_shapes = [(leaf.shape, leaf.dtype) for leaf in first_leaves]
    for block_index, (leaves, other_structure) in enumerate(flattened):
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        if other_structure != structure or shapes != first_shapes:
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
    """Return rows as a single 2-D view if they are adjacent in memory, otherwise as the given list."""
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
    """Return the dtype and shape of each array (leaf) of a block, as text for error messages."""
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)


DEFAULT_N_BLOCKS = 24  # the default number of data blocks


def find_divisors_near(n_rows: int, target: int) -> list[int]:
    """Return the divisors of `n_rows`, except 1, that are closest to `target` from below and above.

    >>> find_divisors_near(2000, 24), find_divisors_near(11, 4), find_divisors_near(13, 26)
    ([20, 25], [11], [13])
    """
    divisors = [count for count in range(2, min(n_rows, 64 * target) + 1) if n_rows % count == 0]
    smaller = [divisor for divisor in divisors if divisor < target]
    larger = [divisor for divisor in divisors if divisor > target]
    return smaller[-1:] + larger[:1]


def compute_max_nonempty_blocks(n_rows: int, max_blocks: int) -> int:
    """Return the largest number of blocks up to `max_blocks` for which no block is empty.

    All blocks except the last one have ceil(rows / blocks) rows. For example, 24 blocks for 25 rows would
    have 2 rows each, so that only 13 of them would contain rows.

    >>> [compute_max_nonempty_blocks(*counts) for counts in ((25, 24), (25, 25), (10, 6))]
    [13, 25, 5]
    """
    rows_per_block = -(-n_rows // max_blocks)
    return -(-n_rows // rows_per_block)


def compute_min_nonempty_blocks(n_rows: int, min_blocks: int) -> int:
    """Return the smallest number of blocks from `min_blocks` upwards for which no block is empty.

    See `compute_max_nonempty_blocks` for the sizes of the blocks.

    >>> [compute_min_nonempty_blocks(*counts) for counts in ((25, 24), (25, 10), (10, 6))]
    [25, 13, 10]
    """
    while compute_max_nonempty_blocks(n_rows, min_blocks) < min_blocks:
        min_blocks += 1
    return min_blocks


def check_no_empty_blocks(n_rows: int, n_blocks: int) -> None:
    """Raise CodeError if some of `n_blocks` blocks of ceil(n_rows / n_blocks) rows would be empty."""
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
    """Return the default number of blocks for `n_rows` rows, with no empty blocks.

    It is a divisor of `n_rows` if there is one that differs from `target` by at most a quarter, because equal
    blocks need no padding. Otherwise, it is the number closest to `target` for which no block is empty.

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
    """Raise CodeError if an array cannot be cut into blocks and encoded."""
    check_not_masked_or_sparse(data, argument_name)
    check_array_class_and_dtype(data, argument_name)
    if not data.shape or data.shape[0] == 0:  # An empty HDF5 dataset has no shape.
        raise CodeError(f"data of shape {tuple(data.shape or ())} has no rows to cut into blocks")
    check_supported_dtype(data.dtype, "the data")


def check_not_masked_or_sparse(data: Any, argument_name: str, sparse_advice: str = "") -> None:
    """Raise CodeError for masked arrays and sparse matrices.

    sparse_advice : what to pass instead of a sparse matrix, for the error message.
    """
    if is_masked_array(data):
        raise CodeError(
            f"{argument_name} is a masked array, which cannot be encoded, because parity blocks have no "
            f"mask: use {argument_name}.filled(0)"
        )
    if hasattr(data, "toarray"):
        accepted_by = ", which only coded_map with linear f, hedged_map, CodedOperator, polarmap.glm and "
        accepted_by = "" if sparse_advice else accepted_by + "polarmap.convex accept (from scipy.sparse)"
        advice = sparse_advice or f"{argument_name}.toarray()"
        raise CodeError(f"{argument_name} is a sparse {type(data).__name__}{accepted_by}: use {advice}")


def check_array_class_and_dtype(data: Any, argument_name: str = "data") -> None:
    """Raise CodeError if `data` has a dtype that numpy lacks, or belongs to a subclass of numpy.ndarray.

    Such properties would be lost, because the mapped function receives plain numpy arrays.
    """
    array_class = type(data)
    if is_array_like(data) and get_numpy_dtype(data) is None:
        raise CodeError(
            f"{argument_name} is a {array_class.__module__}.{array_class.__name__} of dtype {data.dtype}, "
            f"which numpy does not have: use numpy.asarray({argument_name})"
        )
    if isinstance(data, np.ndarray) and array_class not in (np.ndarray, np.memmap, np.matrix):
        raise CodeError(
            f"{argument_name} is a {array_class.__name__}, but f would receive plain arrays: "
            f"use numpy.asarray({argument_name})"
        )


def concatenate_results(results: Sequence[Any], axis: int) -> Any:
    """Join the results of a map along `axis`. Scalar results are stacked to a vector."""
    try:
        flattened = [flatten(result) for result in results]
    except TypeError as error:
        raise CodeError(
            f"concatenate() can only join results that are arrays: use list(result) ({error})"
        ) from error
    if not flattened:
        raise CodeError("concatenate() needs at least one result, but the data was empty")
    if len(flattened[0][1]) != 1:
        raise CodeError(
            f"concatenate() can only join results that are arrays, but f returned a container of "
            f"{describe_leaves(flattened[0][0])}: use list(result)"
        )
    arrays = [leaves[0] for leaves, _ in flattened]
    if arrays[0].ndim == 0:
        return np.stack(arrays)
    try:
        return unflatten(flattened[0][1], [np.concatenate(arrays, axis=axis)])
    except ValueError as error:  # numpy.AxisError is also a ValueError.
        shapes = f"{arrays[0].shape} and {arrays[-1].shape}"
        raise CodeError(f"results of shapes {shapes} cannot be joined along axis {axis}: {error}") from error
