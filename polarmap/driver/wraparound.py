"""Handle integers that overflow in parity blocks, which are computed modulo 2^64.

Integer results are decoded modulo 2^64 as well, so overflow is harmless unless the mapped function turns the
integers into floats or into Python integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.dtypes import FLOAT64_EPS, Array, DType, is_integer_dtype
from polarmap.errors import CodeError


def explain_overflow_obstacle(coded_data: CodedData, result_dtypes: Sequence[DType]) -> str:
    """Return an error message if integer overflow may prevent decoding, else "".

    This is the case if the mapped function turns integers into floats, and values in parity blocks, or sums
    over a block, may exceed 64 bits.
    """
    float_names = [str(dtype) for dtype in result_dtypes if not is_integer_dtype(dtype)]
    if not (
        float_names and (_has_unsigned_data(coded_data) or _may_exceed_int64(coded_data, include_sums=True))
    ):
        return ""
    integer_names = [str(dtype) for dtype in coded_data.data_blocks.dtypes if is_integer_dtype(dtype)]
    return (
        f"f turns {integer_names[0]} blocks into {float_names[0]}, and parity blocks of such 64-bit "
        "integers, or sums over one, wrap modulo 2^64, which floats do not undo: use data.astype(float)"
        + (", or data.astype(numpy.int64) for numbers below 2^63" if integer_names[0] == "uint64" else "")
    )


def undo_wraparound(
    coded_data: CodedData,
    received: Mapping[int, Array],
    arrived_indices: Array,
    weights: Array,
    modular_blocks: Array,
) -> list[Array]:
    """Restore missing Python integers from their residues modulo 2^64, which decoding has computed.

    Raises CodeError if a result is ambiguous. An integer that is negative or at least 2^63 is accepted
    only if a received result of a data block is in the same range, because the mapped function may have used
    either signed or unsigned 64-bit arithmetic.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks of the map.
    received : mapping from int to array (1,)
        The received integers, by task.
    arrived_indices : index array (arrived,)
        The tasks of the received integers.
    weights : array (missing, arrived)
        The decoding weights: the missing integers are approximately weights @ received[arrived_indices].
    modular_blocks : array (missing, 1)
        The residues of the missing integers.
    """
    received_values = [int(received[task_index][0]) for task_index in arrived_indices.tolist()]
    n_data_results = int((arrived_indices < len(coded_data.code.systematic_indices)).sum())
    has_small_sums = not _may_exceed_int64(coded_data, include_sums=True)
    may_wrap = _has_unsigned_data(coded_data) or _may_exceed_int64(coded_data, include_sums=False)
    values = np.array(received_values, np.float64)
    approximations = weights @ values
    error_margins = 16 * FLOAT64_EPS * (np.abs(weights) @ np.abs(values)) + 1
    negative_signs = {value < 0 for value in received_values[:n_data_results] if not 0 <= value < 1 << 63}
    exact_values = []
    for approximation, error_margin, residue in zip(
        approximations.tolist(), error_margins.tolist(), modular_blocks[:, 0].tolist()
    ):
        exact_value = residue % 2**64
        is_below_half = exact_value < 1 << 63
        exact_value -= (not is_below_half and exact_value - approximation > 1 << 63) << 64
        fits = not may_wrap and abs(exact_value - approximation) <= error_margin
        if not (fits and (is_below_half or (exact_value < 0) in negative_signs)) and not (
            is_below_half and has_small_sums
        ):
            raise CodeError(
                "f returns Python integers, and a lost one may be off by 2^64, modulo which parity of the "
                "data is decoded: return numpy integers, as in numpy.int64(total)"
            )
        exact_values.append(np.array([exact_value]))
    return exact_values


def _has_unsigned_data(coded_data: CodedData) -> bool:
    """Return whether the data contains unsigned 64-bit integers, whose parity may wrap below zero."""
    return np.dtype(np.uint64) in coded_data.data_blocks.dtypes


def _may_exceed_int64(coded_data: CodedData, include_sums: bool) -> bool:
    """Return whether values in parity blocks of 64-bit integers may reach 2^63.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks of the map.
    include_sums : bool
        Whether to consider the sum of all entries in a block rather than its largest entry.
    """
    blocks = coded_data.data_blocks
    sizes = [prod(shape) if include_sums else 1 for _, shape in coded_data.block_layout(0)]
    return any(
        blocks.compute_max_abs(leaf_index) * coded_data.code.norm_inf * sizes[leaf_index] >= 1 << 63
        for leaf_index, dtype in enumerate(blocks.dtypes)
        if is_integer_dtype(dtype) and dtype.itemsize == 8
    )
