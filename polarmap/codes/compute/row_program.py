"""Programs of row additions, with which the Arikan kernel encodes and decodes blocks.

    table:  row 0, row 1, row 2 = row 0 - row 1, ...        each row is a block

The Arikan kernel needs few additions, mostly with factors 1 or -1, so adding rows is faster than a matrix
product. NumPy integers wrap around modulo 2^bits, as the decoders need. `successive_cancellation` and
`arikan_code` list the operations, and `RowOperationProgram` executes them on tiles of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.compute import block_matmul, tiling
from polarmap.dtypes import Array, DType, Indices, choose_accumulator_dtype, is_integer_dtype

# Minimum size in bytes of a row of a tile, i.e. of a range of columns processed at a time. For shorter
# rows, the overhead of a NumPy call exceeds the time of the addition.
MIN_TILE_ROW_BYTES = 1 << 13
# Tables with at least this many columns are processed by one row operation at a time instead of in batches.
# This avoids temporary copies of many rows.
MIN_WIDE_COLUMNS = 1 << 10
# Load Numba as soon as the row programs of this process have read this many bytes in total. Loading takes
# 0.6 s, and the compiled loops save 0.3 s to 1.4 s per GB. The results are the same with and without Numba.
MIN_COMPILED_BYTES = 1 << 28


class RowOperationBatch(NamedTuple):
    """A batch of operations on the rows of a table: table[target] = table[source] + factor * table[addend].

    The operations of a batch are independent: none reads the target row of another. They can therefore be
    executed at once, or in any order.

    Attributes
    ----------
    target_rows, source_rows, addend_rows : index array (operations,)
        Rows of the table.
    factor : int or array (operations,)
        Factor of all operations, or of each of them. With 0, the source row is copied.
    """

    target_rows: Indices
    source_rows: Indices
    addend_rows: Indices
    factor: int | npt.NDArray[np.int64]


class RowOperationProgram:
    """A fixed sequence of row operations that computes the output rows of a table from its input rows.

    Parameters
    ----------
    batches : sequence of RowOperationBatch
        Operations, in order of execution.
    n_rows : int
        Number of rows of the table. Rows that are not input rows are zero at the start.
    input_rows, output_rows : index array
        Rows that contain the given blocks, and rows to compute.

    Examples
    --------
    >>> step = RowOperationBatch(np.array([2]), np.array([0]), np.array([1]), -1)
    >>> difference, out = RowOperationProgram([step], 4, np.arange(2), np.array([2])), np.empty((1, 1), int)
    >>> difference.compute_output_rows(np.array([[7], [5]]), out)
    >>> out.tolist(), difference.operation_table.tolist()
    ([[2]], [[2, 0, 1, -1]])
    """

    _n_bytes_read: ClassVar[int] = 0  # The total size of the inputs of all programs of this process.

    def __init__(
        self, batches: Sequence[RowOperationBatch], n_rows: int, input_rows: Indices, output_rows: Indices
    ) -> None:
        self._batches, self.n_rows = batches, n_rows
        self.input_rows, self.output_rows = input_rows, output_rows

    @property
    def operation_table(self) -> npt.NDArray[np.int64]:
        """The operations that the output rows depend on, as an integer array of shape (operations, 4).

        Its columns contain the target row, the source row, the addend row and the factor.
        """
        return self._compact_operations_and_n_rows[0]

    @cached_property
    def _compact_operations_and_n_rows(self) -> tuple[npt.NDArray[np.int64], int]:
        """The operations that the output depends on, for a table without unused rows, and its number of rows.

        The rows of this smaller table are renumbered, so that the input rows come first and the output rows
        last.
        """
        batch_tables = [
            np.stack(np.broadcast_arrays(*batch), axis=1) for batch in self.batches_needed_for_output
        ]
        operations = np.concatenate([np.empty((0, 4), np.int64), *batch_tables], dtype=np.int64)
        intermediate_mask = np.zeros(self.n_rows, bool)
        intermediate_mask[operations[:, :3]] = True
        intermediate_mask[self.input_rows] = intermediate_mask[self.output_rows] = False
        used_rows = np.concatenate([self.input_rows, np.flatnonzero(intermediate_mask), self.output_rows])
        new_row_indices = np.zeros(self.n_rows, np.int64)
        new_row_indices[used_rows] = np.arange(len(used_rows))
        operations[:, :3] = new_row_indices[operations[:, :3]]
        return operations, len(used_rows)

    @cached_property
    def batches_needed_for_output(self) -> list[RowOperationBatch]:
        """The given operations without those that do not affect the output rows, in order of execution."""
        used_mask = np.zeros(self.n_rows, bool)
        used_mask[self.output_rows] = True
        needed = []
        for target_rows, source_rows, addend_rows, factor in reversed(self._batches):
            needed_mask = used_mask[target_rows]
            if not needed_mask.any():
                continue
            target_rows, source_rows = target_rows[needed_mask], source_rows[needed_mask]
            addend_rows = addend_rows[needed_mask]
            factor = factor[needed_mask] if isinstance(factor, np.ndarray) else factor
            used_mask[target_rows] = False
            used_mask[source_rows] = True
            used_mask[addend_rows] |= np.not_equal(factor, 0)
            needed.append(RowOperationBatch(target_rows, source_rows, addend_rows, factor))
        return needed[::-1]

    def compute_output_rows(self, input_blocks: tiling.FlatBlocks, out: Array) -> None:
        """Execute the program on blocks and write the output rows to `out`.

        Parameters
        ----------
        input_blocks : array (input rows, b) or sequence of arrays (b,)
            Flat blocks for the input rows.
        out : array (output rows, b)
            Array to write the output rows to. Its dtype determines the dtype of the sums.
        """
        if out.shape[1] < MIN_WIDE_COLUMNS:
            self._compute_by_batches(input_blocks, out)
        else:
            self._compute_row_by_row(input_blocks, out)

    def _compute_by_batches(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        sum_dtype = choose_row_sum_dtype(out.dtype)

        def run_tile(columns: slice) -> None:
            table = np.zeros((self.n_rows, columns.stop - columns.start), sum_dtype)
            table[self.input_rows] = tiling.gather_columns(blocks, columns, sum_dtype)
            execute_operation_batches(self.batches_needed_for_output, table)
            out[:, columns] = table[self.output_rows]

        tiles = tiling.iter_column_tiles(out.shape[1], self.n_rows, sum_dtype.itemsize)
        tiling.parallel_for(run_tile, list(tiles))

    def _compute_row_by_row(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        sum_dtype = choose_row_sum_dtype(out.dtype)
        operations, n_rows = self._compact_operations_and_n_rows
        tile_width = max(tiling.TILE_BYTES // n_rows, MIN_TILE_ROW_BYTES) // sum_dtype.itemsize // 64 * 64
        RowOperationProgram._n_bytes_read += sum(block.nbytes for block in blocks)
        is_loading_worthwhile = RowOperationProgram._n_bytes_read >= MIN_COMPILED_BYTES
        compiled = block_matmul.import_compiled_transforms() if is_loading_worthwhile else None
        execute = compiled.execute_row_operations if compiled else execute_row_operations

        def run_tile(columns: slice) -> None:
            table = np.zeros((n_rows, min(tile_width, columns.stop - columns.start)), sum_dtype)
            for start in range(columns.start, columns.stop, tile_width):
                tile_columns = slice(start, min(columns.stop, start + tile_width))
                tile = table[:, : tile_columns.stop - start]
                tiling.gather_columns(blocks, tile_columns, sum_dtype, tile[: len(blocks)])
                execute(tile, operations)
                np.copyto(out[:, tile_columns], tile[n_rows - len(out) :], casting="unsafe")

        tiling.parallel_for(run_tile, tiling.split_columns_for_cores(out, tile_width))


def choose_row_sum_dtype(dtype: DType) -> DType:
    """Return the dtype in which row operations compute sums of rows of `dtype`.

    For integers, this is the signed integer type of the same size. Floats are summed in the accumulator
    dtype, for example float32 in float64.

    >>> choose_row_sum_dtype(np.dtype("u2")), choose_row_sum_dtype(np.dtype("f4"))
    (dtype('int16'), dtype('float64'))
    """
    return np.dtype(f"i{dtype.itemsize}") if is_integer_dtype(dtype) else choose_accumulator_dtype(dtype)


def execute_operation_batches(batches: Sequence[RowOperationBatch], table: Array) -> None:
    """Execute row operations on `table` in place, batch by batch."""
    for target_rows, source_rows, addend_rows, factor in batches:
        if isinstance(factor, np.ndarray):
            table[target_rows] = table[source_rows] + factor.astype(table.dtype)[:, None] * table[addend_rows]
        elif factor == 1:
            table[target_rows] = table[source_rows] + table[addend_rows]
        elif factor == -1:
            table[target_rows] = table[source_rows] - table[addend_rows]
        else:
            table[target_rows] = table[source_rows]


def execute_adjoint_operation_batches(batches: Sequence[RowOperationBatch], table: Array) -> None:
    """Execute the transposed operations in reverse order, to express outputs in terms of the input blocks.

    Each column of `table` describes a linear combination of the output blocks. At the start, the output rows
    contain its coefficients. At the end, the input rows contain the coefficients of the input blocks in the
    same combination. The results are undefined for rows that several operations of a batch read, such as a
    row of zeros.

    Parameters
    ----------
    batches : sequence of RowOperationBatch
        Operations, in the order of forward execution.
    table : array (rows, combinations)
        Coefficients. Unsigned integers are bit sets, whose bits are added modulo 2.
    """
    is_bitset = table.dtype.kind == "u"
    add, multiply = (np.bitwise_xor, np.bitwise_and) if is_bitset else (np.add, np.multiply)
    for target_rows, source_rows, addend_rows, factor in reversed(batches):
        target_values = table[target_rows]
        table[target_rows] = 0
        table[source_rows] = add(table[source_rows], target_values)
        if np.any(factor):
            factors = np.reshape(-(factor & 1) if is_bitset else factor, (-1, 1)).astype(table.dtype)
            table[addend_rows] = add(table[addend_rows], multiply(factors, target_values))


def execute_row_operations(table: Array, operations: npt.NDArray[np.int64]) -> None:
    """Execute row operations on `table` in place, one by one.

    The compiled loop in `transforms_numba` gives the same results.

    Parameters
    ----------
    table : array (rows, b)
        Blocks to change, one per row.
    operations : int64 array (operations, 4)
        Target, source, addend and factor of each operation, as in `RowOperationProgram.operation_table`.
    """
    table_rows, scratch_row = list(table), np.empty_like(table[0])
    factors = operations[:, 3].astype(table.dtype)  # Too large factors wrap around, as integer sums do.
    for target_row, source_row, addend_row, factor in zip(*operations[:, :3].T.tolist(), factors.tolist()):
        if factor == 1:
            np.add(table_rows[source_row], table_rows[addend_row], out=table_rows[target_row])
        elif factor == -1:
            np.subtract(table_rows[source_row], table_rows[addend_row], out=table_rows[target_row])
        elif factor == 0:
            np.copyto(table_rows[target_row], table_rows[source_row])
        else:
            np.multiply(table_rows[addend_row], factor, out=scratch_row)
            np.add(table_rows[source_row], scratch_row, out=table_rows[target_row])
