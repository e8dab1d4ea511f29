"""Sparse matrices as blocks of rows in CSR form, whose parity blocks are sparse, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polarmap.blocks.coded import CodedBlocks, is_finite, nonfinite_warning
from polarmap.blocks.equal import Blocks
from polarmap.codes.polar import PolarCode
from polarmap.codes.uncoded import DEFAULT_BACKUPS, Uncoded
from polarmap.dtypes import Array, accumulator_dtype, check_dtype, is_integer_dtype, real_dtype
from polarmap.errors import CodeError
from polarmap.worker.block_functions import on_sparse_rows
from polarmap.worker.pytree import Layout, layout_of

# What a task costs whatever its block holds, in nonzeros that a product goes through meanwhile
# (benchmarks/sparse.py).
TASK_NONZEROS = 400_000
TRIED_COLUMNS = 3  # in which rows that are made up have entries
MOST_WORK = 1.6  # times what tasks cost whose parity blocks are like data blocks, that a coded map may cost


def as_csr(data: Any, name: str = "data") -> Any:
    """A matrix of scipy.sparse in CSR form, its indices sorted and without duplicates.

    No copy of one that has it already. CodeError for what has no rows of numbers.
    """
    if len(data.shape) != 2:
        raise CodeError(
            f"{name} is a sparse {type(data).__name__} of shape {data.shape}: use one with two axes, "
            f"as {name}.reshape(1, -1)"
        )
    if 0 in data.shape:
        raise CodeError(f"{name} of shape {data.shape} has no rows with columns to cut into blocks")
    check_dtype(data.dtype, name)
    matrix = data.tocsr()
    if not matrix.has_canonical_format:
        matrix = matrix.copy() if matrix is data else matrix
        matrix.sum_duplicates()
    return matrix


class SparseBlocks(Blocks):
    """k blocks of equally many rows of a matrix in CSR form; each is three arrays: data, indices, indptr.

    Attributes
    ----------
    matrix : csr_array or csr_matrix
        With `padding` rows of zeros at its end.
    """

    def __init__(self, matrix: Any, k: int) -> None:
        total, columns = map(int, matrix.shape)
        rows = -(-total // k)
        indptr = np.pad(matrix.indptr, (0, rows * k - total), mode="edge")
        arrays = matrix.data, matrix.indices, indptr
        self.matrix = type(matrix)(arrays, shape=(rows * k, columns))
        leaves = [_rows(self.matrix, index * rows, (index + 1) * rows) for index in range(k)]
        super().__init__(leaves, (tuple, (), (("array",),) * 3), rows * k - total, rows)

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """The dtype of the entries, in a list: nothing else is mixed."""
        return [self.matrix.dtype]

    @property
    def nonzeros(self) -> list[int]:
        """How many entries each block stores, explicit zeros among them."""
        return [len(data) for data, _, _ in self._leaves]

    def rows_to_try(self, count: int) -> list[Array]:
        """Return so many rows on which f can be tried: made up, as rows of the matrix may have no entries."""
        matrix, width = self.matrix, min(TRIED_COLUMNS, self.matrix.shape[1])
        data = np.resize(np.arange(1, 8), count * width).astype(matrix.dtype)
        indices = np.tile(np.arange(width, dtype=matrix.indices.dtype), count)
        return [data, indices, width * np.arange(count + 1, dtype=matrix.indptr.dtype)]

    def cut_rows(self, leaves: Sequence[Array], rows: int, filled_to: int) -> list[Array]:
        """Return copies of the first `rows` rows of leaves of a block, filled up with rows of zeros."""
        data, indices, indptr = leaves
        entries = slice(int(indptr[rows]))
        ends = np.pad(indptr[: rows + 1], (0, filled_to - rows), mode="edge")
        return [data[entries].copy(), indices[entries].copy(), ends]


class SparseCodedBlocks(CodedBlocks):
    """The coded blocks of `SparseBlocks`: parity blocks are sums of sparse ones, and sparse.

    code_reason : why this code.
    """

    blocks: SparseBlocks

    def __init__(
        self, blocks: SparseBlocks, code: PolarCode | Uncoded, code_reason: str = "", keep: bool = False
    ) -> None:
        super().__init__(blocks, code, keep)
        self._coefficients, self.code_reason = code.encoding_matrix, code_reason
        self._layouts: list[Layout] = []  # of parity blocks, once these were made

    def on_blocks(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """f of sparse rows, as it is called with the arrays of a block."""
        return on_sparse_rows(f, type(self.blocks.matrix), self.blocks.matrix.shape[1])

    def leaves(self, index: int) -> list[Array]:
        """The arrays of coded block `index`."""
        if index < self._data_count:
            return self.blocks.leaves(index)
        parity = self._all_parity()[0][index - self._data_count]
        return [parity.data, parity.indices, parity.indptr]

    def layout(self, index: int) -> Layout:
        """Dtype and shape of each; of a parity block only known when it has been made."""
        if index < self._data_count:
            return layout_of(self.blocks.leaves(index))
        if not self._layouts:
            self._layouts = [layout_of(self.leaves(parity)) for parity in range(self._data_count, self.n)]
        return self._layouts[index - self._data_count]

    def _parity_of(self, leaf: int) -> Any:
        """The parity blocks as matrices in CSR form."""
        return [
            parity_rows(self.blocks, coefficients, self.code.parity_dtype(self.blocks.matrix.dtype))
            for coefficients in self._coefficients
        ]

    def _nonfinite_warning(self, parity: Sequence[Any]) -> str:
        """What is said of NaN and inf in parity blocks; nothing without any."""
        dtype = self.blocks.matrix.dtype
        if is_integer_dtype(dtype) or all(is_finite(one.data.view(real_dtype(dtype))) for one in parity[0]):
            return ""
        return _describe_nonfinite(self.blocks)


def parity_rows(blocks: SparseBlocks, coefficients: Array, dtype: np.dtype[Any]) -> Any:
    """One parity block, the sum of `coefficients` times the data blocks, in CSR form.

    Its pattern is the union of theirs. Integers are added up modulo 2^64, others in the working dtype.
    """
    matrix = blocks.matrix
    if is_integer_dtype(dtype):
        made = _combined(_with_data(matrix, _words(matrix.data)), _words(coefficients))
        return _with_data(made, made.data.view(np.int64).astype(dtype))
    working = np.result_type(accumulator_dtype(real_dtype(dtype)), dtype)
    made = _combined(
        _with_data(matrix, matrix.data.astype(working, copy=False)), coefficients.astype(working)
    )
    return _with_data(made, made.data.astype(dtype, copy=False))


def parity_nonzeros(blocks: SparseBlocks, coefficients: Array) -> list[int]:
    """How many entries each parity block will have: those of the union of the blocks that it is made of."""
    supports, which = np.unique(coefficients != 0, axis=0, return_inverse=True)
    pattern = _with_data(blocks.matrix, np.ones(blocks.matrix.nnz, np.int32))
    counts = [int(_combined(pattern, support.astype(np.int32)).nnz) for support in supports]
    return [counts[number] for number in which.reshape(-1).tolist()]


def work_of_coding(data: Sequence[int], parity: Sequence[int]) -> float:
    """What all tasks cost, in terms of what they would if parity blocks had as many nonzeros as data blocks.

    data, parity : nonzeros of each block.

    >>> round(work_of_coding([1_000] * 24, [24_000] * 8), 3), work_of_coding([400_000] * 24, [8_000_000] * 8)
    (1.014, 3.375)
    """
    each = TASK_NONZEROS + sum(data) / len(data)
    return (len(data) * each + sum(TASK_NONZEROS + count for count in parity)) / (
        each * (len(data) + len(parity))
    )


def cheaper(blocks: SparseBlocks, code: PolarCode) -> tuple[PolarCode | Uncoded, str]:
    """The code, or none with copies of late tasks, whichever costs less; and why, in a sentence."""
    data, parity = blocks.nonzeros, parity_nonzeros(blocks, code.encoding_matrix)
    work, mean, largest = work_of_coding(data, parity), sum(data) / len(data), max(parity)
    times = f", {largest / mean:.3g} times those of a data block" if mean else ""
    why = f"a parity block has {largest:,} nonzeros{times}, by which all tasks cost {work:.2f} times as much"
    if work <= MOST_WORK:
        return code, f"coded: {why}"
    return Uncoded(blocks.k, DEFAULT_BACKUPS), f"copies of late tasks: {why}, more than {MOST_WORK:g}"


def _rows(matrix: Any, begin: int, end: int) -> list[Array]:
    """The arrays of some rows of a matrix in CSR form: views, but for the smallest."""
    indptr = matrix.indptr[begin : end + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    return [matrix.data[entries], matrix.indices[entries], indptr - indptr[0]]


def _with_data(matrix: Any, data: Array) -> Any:
    """A matrix with the pattern of another, and other values."""
    return type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _words(numbers: Array) -> Array:
    """Integers modulo 2^64, without a sign: what overflows in C is defined."""
    return numbers.astype(np.uint64 if numbers.dtype.kind == "u" else np.int64).view(np.uint64)


def _combined(matrix: Any, coefficients: Array) -> Any:
    """The sum of blocks of rows times coefficients, by one sparse product; indices are sorted."""
    from scipy.sparse import csr_array

    used = np.flatnonzero(coefficients)
    rows = matrix.shape[0] // len(coefficients)
    index = matrix.indices.dtype.type
    places = np.arange(rows, dtype=index)[:, None] + rows * used.astype(index)
    starts = np.arange(0, places.size + 1, len(used), dtype=index) if len(used) else np.zeros(rows + 1, index)
    weights = np.tile(coefficients[used], rows)
    selection = csr_array((weights, places.reshape(-1), starts), shape=(rows, matrix.shape[0]))
    made = selection @ csr_array(matrix)
    made.sort_indices()
    return made


def _describe_nonfinite(blocks: SparseBlocks) -> str:
    """Where the data is NaN or inf, or its sums are, and what that means for a map."""
    matrix = blocks.matrix
    places = np.flatnonzero(~np.isfinite(matrix.data))
    row = int(np.searchsorted(matrix.indptr, places[0], side="right")) - 1 if len(places) else None
    return nonfinite_warning(matrix.dtype, len(places), f"row {row}")
