"""Compute blocks of a coded array as weighted sums of other blocks.

Parity blocks are weighted sums of data blocks, and lost blocks are weighted sums of the remaining blocks. The
driver computes the weights. Workers compute the sums, for which they need only numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polarmap.codes import modular_linalg
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import Array, is_integer_dtype

# The rows are multiplied by the weights in pieces, to limit memory. Each piece of all rows together has about
# this many elements.
TILE_ELEMENTS = 1 << 17


def compute_recovery_weights(code: LinearCode, dtype: np.dtype[Any], erased_blocks: Sequence[int]) -> Array:
    """Return the weights for computing erased blocks from the available blocks.

        erased blocks = weights @ available blocks

    Parameters
    ----------
    code : LinearCode
        The systematic code that relates the blocks.
    dtype : numpy.dtype
        The dtype of the data blocks.
    erased_blocks : sequence of int
        The blocks to compute, data blocks first. All other blocks count as available.

    Returns
    -------
    array (erased, n - erased)
        The weights, of dtype float64; for integers uint64, to be applied modulo 2^64.
    """
    is_integer, available = is_integer_dtype(dtype), np.setdiff1d(np.arange(code.n), erased_blocks)
    data = np.array([index for index in erased_blocks if index < code.k], np.intp)
    parity = np.array([index for index in erased_blocks if index >= code.k], np.intp)
    weights = np.zeros((len(erased_blocks), len(available)), np.uint64 if is_integer else np.float64)
    if len(data):
        tracker = ArrivalTracker(code, modular=is_integer)
        for block_index in available.tolist():
            tracker.add(block_index)
        weights[: len(data)] = tracker.decoder.over(dtype).weights
    if len(parity):
        P = code.compute_encoding_matrix_rows(parity - code.k)
        available_data = available[available < code.k]
        weights[len(data) :, : len(available_data)] = P[:, available_data].astype(weights.dtype)
        multiply = modular_linalg.matmul_mod64 if is_integer else np.matmul
        weights[len(data) :] += multiply(P[:, data], weights[: len(data)])
    return weights


def make_parity_function(
    code: PolarCode, data_dtype: np.dtype[Any]
) -> Callable[[Sequence[Array]], list[Array]]:
    """Return a function that computes the parity rows from the data rows, one row per block.

    Workers can run the function with only numpy installed.

    The blocks of a code may be divided into groups that are encoded separately. To save memory, the function
    contains a matrix of weights for each distinct code of a group, instead of a matrix for all blocks.
    """
    parity_dtype, functions, parts = code.parity_dtype(data_dtype), dict[LinearCode, Any](), list[Any]()
    for group_code, blocks in code.split_into_groups():
        if group_code not in functions:
            weights = compute_recovery_weights(group_code, data_dtype, range(group_code.k, group_code.n))
            functions[group_code] = make_weighted_sum_function(weights, [parity_dtype] * len(weights))
        data_indices, parity_indices = blocks[: group_code.k], blocks[group_code.k :] - code.k
        parts.append((functions[group_code], data_indices.tolist(), parity_indices.tolist()))
    n_parity = code.n - code.k

    def compute_parity(rows: Sequence[Array]) -> list[Array]:
        parity: list[Any] = [None] * n_parity
        for compute_sums, data_indices, parity_indices in parts:
            sums = compute_sums([rows[data_index] for data_index in data_indices])
            for parity_index, row in zip(parity_indices, sums):
                parity[parity_index] = row
        return parity

    return compute_parity


def make_weighted_sum_function(
    weights: Array, dtypes: Sequence[np.dtype[Any]], multiply: Callable[[Array, Array], Array] = np.matmul
) -> Callable[[Sequence[Array]], list[Array]]:
    """Return a function that computes the weighted sums `weights @ rows`.

    Workers can run the function with only numpy installed. It takes a sequence of one-dimensional arrays (the
    rows), and returns a list with one array per row of `weights`. These arrays have the given dtypes.
    Matrices are multiplied by calling `multiply`.
    """
    working_dtype = np.dtype(np.int64) if weights.dtype == np.uint64 else weights.dtype

    def view_as_real(rows: Sequence[Array]) -> list[Array]:
        return [row.view(f"f{row.itemsize // 2}") if row.dtype.kind == "c" else row for row in rows]

    def compute_sums(rows: Sequence[Array]) -> list[Array]:
        real_rows, results = view_as_real(rows), [np.empty(rows[0].size, dtype) for dtype in dtypes]
        real_results, tile_size = view_as_real(results), max(64, TILE_ELEMENTS // len(rows))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, real_rows[0].size, tile_size):
                tile = np.array([row[start : start + tile_size].astype(working_dtype) for row in real_rows])
                for real_result, row in zip(real_results, multiply(weights, tile.view(weights.dtype))):
                    real_result[start : start + tile_size] = row.astype(real_result.dtype)
        return results

    return compute_sums
