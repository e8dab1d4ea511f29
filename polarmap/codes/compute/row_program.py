"""Sums of blocks as operations on the rows of a table, of integers modulo 2^bits of the sums.

The coefficients of an Arikan code are few and mostly 1 or -1, so that adding rows takes less time than a
product would, and native integers wrap as they should.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.compute import block_matmul, tiling
from polarmap.dtypes import Array, DType, Indices, choose_accumulator_dtype, is_integer_dtype

# Bytes of a row in a tile: with fewer, numpy takes longer to begin a sum than to add it up.
MIN_TILE_ROW_BYTES = 1 << 13
MIN_WIDE_COLUMNS = 1 << 10  # columns from which on rows are added one by one
MIN_COMPILED_BYTES = 1 << 28  # numba takes 0.6 s to load, and saves 0.3 s for each GB


class RowOperationBatch(NamedTuple):
    """rows[target] = rows[first] + factor * rows[second], a copy of rows[first] where `factor` is 0.

    No operation of a step reads the target of another. `factor` is one for all, or one for each.
    """

    target_rows: Indices
    source_rows: Indices
    addend_rows: Indices
    factor: int | npt.NDArray[np.int64]


class RowOperationProgram:
    """Steps on a table of which some rows are given and some are wanted; others are zero at first.

    >>> step = RowOperationBatch(np.array([2]), np.array([0]), np.array([1]), -1)
    >>> difference, out = RowOperationProgram([step], 4, np.arange(2), np.array([2])), np.empty((1, 1), int)
    >>> difference.compute_output_rows(np.array([[7], [5]]), out)
    >>> out.tolist(), difference.operation_table.tolist()
    ([[2]], [[2, 0, 1, -1]])
    """

    def __init__(
        self, batches: Sequence[RowOperationBatch], n_rows: int, input_rows: Indices, output_rows: Indices
    ) -> None:
        self._batches, self.n_rows = batches, n_rows
        self.input_rows, self.output_rows = input_rows, output_rows

    @property
    def operation_table(self) -> npt.NDArray[np.int64]:
        """Target, first, second and factor of each operation that is of use, (count, 4)."""
        return self._compact_operations_and_n_rows[0]

    @cached_property
    def _compact_operations_and_n_rows(self) -> tuple[npt.NDArray[np.int64], int]:
        """The same on a table of the rows in use, the given ones first, the wanted ones last; its height."""
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
        """What of the steps the wanted rows depend on."""
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
        """Put what is wanted of `input_blocks`, which are given, into `out`."""
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
        compiled = block_matmul.load_compiled_transforms_if_large(MIN_COMPILED_BYTES, blocks)
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
    """The dtype in which sums of `dtype` are added up: of integers the signed one, which wraps alike.

    >>> choose_row_sum_dtype(np.dtype("u2")), choose_row_sum_dtype(np.dtype("f4"))
    (dtype('int16'), dtype('float64'))
    """
    return np.dtype(f"i{dtype.itemsize}") if is_integer_dtype(dtype) else choose_accumulator_dtype(dtype)


def execute_operation_batches(batches: Sequence[RowOperationBatch], table: Array) -> None:
    """Do `batches` on `table`, in place, each at once."""
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
    """The transpose of `execute_operation_batches`, in place: what each wanted row is made of, the last step
    first.

    Of rows that many operations of a step read, as a row of zeros may be, nothing is told. Unsigned numbers
    are sets of bits, each of which is added up modulo 2.
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
    """Do `operations` on `table`, in place, row by row: the oracle of the compiled loops."""
    table_rows, scratch_row = list(table), np.empty_like(table[0])
    factors = operations[:, 3].astype(table.dtype)  # wraps
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
