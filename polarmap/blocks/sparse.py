"""Cut sparse matrices into blocks of rows in CSR format, and encode them with sparse parity blocks.

A parity block is a sum of data blocks, so it may have many times as many nonzeros as a data block. If this
would cost too much, `choose_code_or_backups` uses no code, and late tasks are started a second time instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polarmap.blocks.coded import CodedBlocks, format_nonfinite_warning, is_all_finite
from polarmap.blocks.equal import DataBlocks
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.dtypes import (
    Array,
    check_supported_dtype,
    choose_accumulator_dtype,
    is_integer_dtype,
    to_real_dtype,
)
from polarmap.errors import CodeError
from polarmap.worker.pytree import Layout, get_layout
from polarmap.worker.task_functions import make_csr_task

# The fixed cost of a task, expressed as the number of nonzeros that a matrix-vector product processes in that
# time (measured by benchmarks/sparse.py).
TASK_OVERHEAD_NONZEROS = 400_000
# The mapped function is called with a few artificial rows as a trial. They have at most this many nonzeros
# each.
MAX_SAMPLE_COLUMNS = 3

# Parity blocks have more nonzeros than data blocks, so their tasks take longer. If this makes all tasks
# together more expensive by a factor above this limit, no code is used.
MAX_RELATIVE_WORK = 1.6


def to_canonical_csr(data: Any, argument_name: str = "data") -> Any:
    """Convert a scipy.sparse matrix to CSR format with sorted indices and without duplicates.

    A matrix already in this format is not copied. Raises CodeError if the matrix is empty, is not
    two-dimensional, or has an unsupported dtype.
    """
    if len(data.shape) != 2:
        raise CodeError(
            f"{argument_name} must have two axes, but is a sparse {type(data).__name__} of shape "
            f"{data.shape}: use {argument_name}.reshape(1, -1)"
        )
    if 0 in data.shape:
        raise CodeError(f"{argument_name} of shape {data.shape} is empty, so it cannot be cut into blocks")
    check_supported_dtype(data.dtype, argument_name)
    matrix = data.tocsr()
    if not matrix.has_canonical_format:
        matrix = matrix.copy() if matrix is data else matrix
        matrix.sum_duplicates()
    return matrix


class SparseDataBlocks(DataBlocks):
    """The k row blocks of a sparse matrix.

    Each block consists of the CSR arrays data, indices and indptr.

    Attributes
    ----------
    matrix : csr_array or csr_matrix
        The whole matrix, including `n_padding_rows` rows of zeros at the end.
    """

    def __init__(self, matrix: Any, k: int) -> None:
        n_rows, n_columns = map(int, matrix.shape)
        rows_per_block = -(-n_rows // k)
        indptr = np.pad(matrix.indptr, (0, rows_per_block * k - n_rows), mode="edge")
        csr_arrays = matrix.data, matrix.indices, indptr
        self.matrix = type(matrix)(csr_arrays, shape=(rows_per_block * k, n_columns))
        leaves_by_block = [
            _slice_csr_rows(self.matrix, block_index * rows_per_block, (block_index + 1) * rows_per_block)
            for block_index in range(k)
        ]
        structure = (tuple, (), (("array",),) * 3)
        super().__init__(leaves_by_block, structure, rows_per_block * k - n_rows, rows_per_block)

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The dtype of the matrix entries, as a list. The dtypes of the index arrays are not included."""
        return [self.matrix.dtype]

    @property
    def argument_layout(self) -> Layout:
        """The dtype and shape of the sparse matrix that the mapped function receives."""
        n_rows, n_columns = map(int, self.matrix.shape)
        return ((self.matrix.dtype.str, (n_rows // self.k, n_columns)),)

    @property
    def nonzeros_per_block(self) -> list[int]:
        """The number of stored entries in each block, including explicit zeros."""
        return [len(data) for data, _, _ in self._leaves_by_block]

    def sample_rows(self, n_rows: int) -> list[Array]:
        """Return `n_rows` artificial rows as CSR arrays, for a trial call of the mapped function.

        Rows of the matrix are not used, because they may contain only zeros.
        """
        matrix, n_columns = self.matrix, min(MAX_SAMPLE_COLUMNS, self.matrix.shape[1])
        data = np.resize(np.arange(1, 8), n_rows * n_columns).astype(matrix.dtype)
        indices = np.tile(np.arange(n_columns, dtype=matrix.indices.dtype), n_rows)
        return [data, indices, n_columns * np.arange(n_rows + 1, dtype=matrix.indptr.dtype)]

    def copy_padded_rows(self, leaves: Sequence[Array], n_rows: int, padded_length: int) -> list[Array]:
        """Copy the first `n_rows` rows of a block and zero-pad the copy to `padded_length` rows."""
        data, indices, indptr = leaves
        entries = slice(int(indptr[n_rows]))
        padded_indptr = np.pad(indptr[: n_rows + 1], (0, padded_length - n_rows), mode="edge")
        return [data[entries].copy(), indices[entries].copy(), padded_indptr]


class SparseCodedBlocks(CodedBlocks):
    """The coded blocks of a sparse matrix: its blocks of rows, and sparse parity blocks.

    See `CodedBlocks` for the parameters. In addition, `code_reason` is a text for the report that explains
    why this code was chosen.
    """

    data_blocks: SparseDataBlocks

    def __init__(
        self,
        data_blocks: SparseDataBlocks,
        code: LinearCode,
        code_reason: str = "",
        keep_parity: bool = False,
    ) -> None:
        super().__init__(data_blocks, code, keep_parity)
        self._encoding_matrix, self.code_reason = code.encoding_matrix, code_reason
        self._parity_layouts: list[Layout] = []  # empty until the parity blocks are encoded

    def wrap_function_for_blocks(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function that calls f with a sparse matrix built from the three arrays of a block."""
        return make_csr_task(f, type(self.data_blocks.matrix), self.data_blocks.matrix.shape[1])

    def block_leaves(self, task: int) -> list[Array]:
        """Return the arrays data, indices and indptr of coded block `task`."""
        if task < self._n_data_blocks:
            return self.data_blocks.block_leaves(task)
        parity = self._get_parity()[0][task - self._n_data_blocks]
        return [parity.data, parity.indices, parity.indptr]

    def block_layout(self, task: int) -> Layout:
        """Return the dtype and shape of each array in block `task`.

        If it is a parity block, this computes all parity blocks, because their numbers of nonzeros are
        needed.
        """
        if task < self._n_data_blocks:
            return get_layout(self.data_blocks.block_leaves(task))
        if not self._parity_layouts:
            parity_indices = range(self._n_data_blocks, self.n)
            self._parity_layouts = [get_layout(self.block_leaves(index)) for index in parity_indices]
        return self._parity_layouts[task - self._n_data_blocks]

    def _encode_leaf(self, leaf_index: int) -> Any:
        """Return the parity blocks as sparse matrices in CSR format."""
        dtype = self.code.parity_dtype(self.data_blocks.matrix.dtype)
        return [build_parity_block(self.data_blocks, row, dtype) for row in self._encoding_matrix]

    def _describe_nonfinite_parity(self, parity: Sequence[Any]) -> str:
        """Return a warning if parity blocks contain NaN or inf, else an empty string."""
        dtype = self.data_blocks.matrix.dtype
        if is_integer_dtype(dtype) or all(
            is_all_finite(parity_matrix.data.view(to_real_dtype(dtype))) for parity_matrix in parity[0]
        ):
            return ""
        return _describe_nonfinite_location(self.data_blocks)


def build_parity_block(data_blocks: SparseDataBlocks, coefficients: Array, dtype: np.dtype[Any]) -> Any:
    """Return a parity block in CSR format: the sum of the data blocks, weighted by `coefficients`.

    Its sparsity pattern is the union of the patterns of data blocks with nonzero coefficients. Integers are
    summed modulo 2^64, and floats are summed in the accumulator dtype of `dtype`.
    """
    matrix = data_blocks.matrix
    if is_integer_dtype(dtype):
        combined = _combine_row_blocks(
            _replace_csr_values(matrix, _convert_to_uint64(matrix.data)), _convert_to_uint64(coefficients)
        )
        return _replace_csr_values(combined, combined.data.view(np.int64).astype(dtype))
    sum_dtype = np.result_type(choose_accumulator_dtype(to_real_dtype(dtype)), dtype)
    combined = _combine_row_blocks(
        _replace_csr_values(matrix, matrix.data.astype(sum_dtype, copy=False)), coefficients.astype(sum_dtype)
    )
    return _replace_csr_values(combined, combined.data.astype(dtype, copy=False))


def count_parity_nonzeros(data_blocks: SparseDataBlocks, encoding_matrix: Array) -> list[int]:
    """Return the number of nonzeros in each parity block, based on the data blocks' sparsity patterns."""
    supports, support_indices = np.unique(encoding_matrix != 0, axis=0, return_inverse=True)
    pattern = _replace_csr_values(data_blocks.matrix, np.ones(data_blocks.matrix.nnz, np.int32))
    counts = [int(_combine_row_blocks(pattern, support.astype(np.int32)).nnz) for support in supports]
    return [counts[support_index] for support_index in support_indices.reshape(-1).tolist()]


def compute_relative_work(data_nonzeros: Sequence[int], parity_nonzeros: Sequence[int]) -> float:
    """Return the factor by which the density of parity blocks increases the total cost of all tasks.

    The factor is 1 if parity blocks have as many nonzeros as data blocks. The cost of a task is proportional
    to the number of nonzeros in its block, plus a fixed cost.

    Parameters
    ----------
    data_nonzeros, parity_nonzeros : sequence of int
        The number of nonzeros in each data block and in each parity block.

    Examples
    --------
    >>> round(compute_relative_work([1_000] * 24, [24_000] * 8), 3)
    1.014
    >>> compute_relative_work([400_000] * 24, [8_000_000] * 8)
    3.375
    """
    k, n_parity = len(data_nonzeros), len(parity_nonzeros)
    mean_data_work = TASK_OVERHEAD_NONZEROS + sum(data_nonzeros) / k
    parity_work = TASK_OVERHEAD_NONZEROS * n_parity + sum(parity_nonzeros)
    return (k * mean_data_work + parity_work) / (mean_data_work * (k + n_parity))


def choose_code_or_backups(data_blocks: SparseDataBlocks, code: LinearCode) -> tuple[LinearCode, str]:
    """Return the code to use for a sparse matrix, and the reason for the choice as text for the report.

    Parity blocks may have so many nonzeros that their tasks would cost too much. In this case, the choice is
    `Uncoded` instead of `code`: the map has no parity blocks, and starts late tasks a second time.
    """
    data_nonzeros = data_blocks.nonzeros_per_block
    parity_nonzeros = count_parity_nonzeros(data_blocks, code.encoding_matrix)
    relative_work = compute_relative_work(data_nonzeros, parity_nonzeros)
    mean, max_nonzeros = sum(data_nonzeros) / len(data_nonzeros), max(parity_nonzeros)
    ratio_text = f", {max_nonzeros / mean:.3g} times those of a data block" if mean else ""
    reason = (
        f"a parity block has up to {max_nonzeros:,} nonzeros{ratio_text}, "
        f"which multiplies the cost of all tasks by {relative_work:.2f}"
    )
    if relative_work <= MAX_RELATIVE_WORK:
        return code, f"coded: {reason}"
    uncoded = Uncoded(data_blocks.k, DEFAULT_BACKUPS)
    return uncoded, f"backups of late tasks: {reason}, more than {MAX_RELATIVE_WORK:g}"


def _slice_csr_rows(matrix: Any, start: int, stop: int) -> list[Array]:
    """Return the CSR arrays (data, indices, indptr) of rows `start` to `stop` (exclusive).

    The first two are views, not copies.
    """
    indptr = matrix.indptr[start : stop + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    return [matrix.data[entries], matrix.indices[entries], indptr - indptr[0]]


def _replace_csr_values(matrix: Any, new_values: Array) -> Any:
    """Return a CSR matrix with the sparsity pattern of `matrix`, but with other values."""
    return type(matrix)((new_values, matrix.indices, matrix.indptr), shape=matrix.shape)


def _convert_to_uint64(integers: Array) -> Array:
    """Convert integers to uint64 modulo 2^64, so that sums wrap around on overflow."""
    return integers.astype(np.uint64 if integers.dtype.kind == "u" else np.int64).view(np.uint64)


def _combine_row_blocks(matrix: Any, coefficients: Array) -> Any:
    """Return the weighted sum of the row blocks of a sparse matrix, in CSR format.

    The matrix is cut into one row block per coefficient. For speed, the sum is computed as a single product
    of two sparse matrices.
    """
    from scipy.sparse import csr_array

    nonzero_indices = np.flatnonzero(coefficients)
    rows_per_block = matrix.shape[0] // len(coefficients)
    index_type = matrix.indices.dtype.type
    rows = np.arange(rows_per_block, dtype=index_type)[:, None]
    row_indices = rows + rows_per_block * nonzero_indices.astype(index_type)
    indptr = (
        np.arange(0, row_indices.size + 1, len(nonzero_indices), dtype=index_type)
        if len(nonzero_indices)
        else np.zeros(rows_per_block + 1, index_type)
    )
    weights = np.tile(coefficients[nonzero_indices], rows_per_block)
    selection = csr_array((weights, row_indices.reshape(-1), indptr), shape=(rows_per_block, matrix.shape[0]))
    combined = selection @ csr_array(matrix)
    combined.sort_indices()
    return combined


def _describe_nonfinite_location(data_blocks: SparseDataBlocks) -> str:
    """Return a warning that explains why parity blocks contain NaN or inf.

    Either the matrix contains NaN or inf, and the warning says where, or sums of rows overflow.
    """
    matrix = data_blocks.matrix
    positions = np.flatnonzero(~np.isfinite(matrix.data))
    row = int(np.searchsorted(matrix.indptr, positions[0], side="right")) - 1 if len(positions) else None
    return format_nonfinite_warning(matrix.dtype, len(positions), f"row {row}")
