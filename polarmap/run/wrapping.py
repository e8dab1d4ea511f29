"""Parity of 64-bit integers wraps modulo 2^64: what it is of use for where f makes something else of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.dtypes import FLOAT64_EPS, Array, DType, is_integer_dtype
from polarmap.errors import CodeError


def why_not_protected(coded: CodedData, made: Sequence[DType]) -> str:
    """Why parity is of no use for an f that makes results of these dtypes, and what to do; "" where it is.

    It is not where f has made floats, and parity blocks of its integers or sums over one may wrap.
    """
    floats = [str(dtype) for dtype in made if not is_integer_dtype(dtype)]
    if not (floats and (_has_unsigned(coded) or _is_large(coded, sums=True))):
        return ""
    wide = [str(dtype) for dtype in coded.data_blocks.dtypes if is_integer_dtype(dtype)]
    return (
        f"f turns {wide[0]} blocks into {floats[0]}, and parity blocks of such 64-bit integers, or sums "
        "over one, wrap modulo 2^64, which floats do not undo: use data.astype(float)"
        + (", or data.astype(numpy.int64) for numbers below 2^63" if wide[0] == "uint64" else "")
    )


def unwrapped(
    coded: CodedData, rows: Mapping[int, Array], arrived: Array, weights: Array, blocks: Array
) -> list[Array]:
    """Python integers, which do not wrap, from what they are modulo 2^64 and from what they are about.

    CodeError for one that may be another that is the same modulo 2^64. Of those from 2^63 on, or
    negative, one is certain if a result of a data block lies on that side: else f may add up in 64 bits,
    with a sign or without one.

    rows : the numbers that arrived, of which these weights make the others.
    blocks : those, modulo 2^64.
    """
    received = [int(rows[index][0]) for index in arrived.tolist()]
    data = int((arrived < len(coded.code.systematic_indices)).sum())
    are_small = not _is_large(coded, sums=True)
    may_wrap = _has_unsigned(coded) or _is_large(coded, sums=False)
    values = np.array(received, np.float64)
    about = weights @ values
    margin = 16 * FLOAT64_EPS * (np.abs(weights) @ np.abs(values)) + 1
    sides = {value < 0 for value in received[:data] if not 0 <= value < 1 << 63}
    found = []
    for near, off, modular in zip(about.tolist(), margin.tolist(), blocks[:, 0].tolist()):
        exact = modular % 2**64
        is_low = exact < 1 << 63
        exact -= (not is_low and exact - near > 1 << 63) << 64
        fits = not may_wrap and abs(exact - near) <= off
        if not (fits and (is_low or (exact < 0) in sides)) and not (is_low and are_small):
            raise CodeError(
                "f returns Python integers, and a lost one may be off by 2^64, modulo which parity of the "
                "data is decoded: return numpy integers, as in numpy.int64(total)"
            )
        found.append(np.array([exact]))
    return found


def _has_unsigned(coded: CodedData) -> bool:
    """Whether parity of the data wraps below zero."""
    return np.dtype(np.uint64) in coded.data_blocks.dtypes


def _is_large(coded: CodedData, sums: bool) -> bool:
    """Whether parity blocks of 64-bit integers may be beyond 2^63; or `sums` over all that is in one."""
    blocks = coded.data_blocks
    sizes = [prod(shape) if sums else 1 for _, shape in coded.block_layout(0)]
    return any(
        blocks.max_abs(leaf) * coded.code.norm_inf * sizes[leaf] >= 1 << 63
        for leaf, dtype in enumerate(blocks.dtypes)
        if is_integer_dtype(dtype) and dtype.itemsize == 8
    )
