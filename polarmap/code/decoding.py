"""Whole arrays in and out of a code [I; P]: what callers hand over is checked and decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import check_dtype, is_exact, is_integer
from polarmap.code.linear import SystematicCode
from polarmap.errors import CodeError, NotDecodableError

Array = npt.NDArray[Any]


def decode_blocks(code: SystematicCode, blocks: Mapping[int, npt.ArrayLike]) -> Array:
    """The k data blocks, stacked, from any set of coded blocks that determines them."""
    arrays = _checked(code, blocks)
    first = next(iter(arrays.values()))
    dtype = check_dtype(first.dtype, "a block")
    decoder = Decoder(code, exact=is_exact(dtype) and code.carries_integers)
    for index in arrays:
        decoder.add(index)
    if not decoder.ready:
        raise NotDecodableError(
            f"{len(arrays)} of {code.n} blocks do not determine the {code.k} data blocks; "
            f"at least {max(1, code.k - len(arrays))} more needed"
        )
    rows = {index: array.reshape(-1) for index, array in arrays.items()}
    result = np.empty((code.k, first.size), dtype)
    for index in range(code.k):
        if index in rows:
            result[index] = rows[index]
    result[decoder.missing] = decoder.recovery.recover(rows, dtype)
    return result.reshape((code.k, *first.shape))


def _checked(code: SystematicCode, blocks: Mapping[int, npt.ArrayLike]) -> dict[int, Array]:
    """The blocks as arrays by position, ascending; CodeError if they do not fit each other."""
    if not isinstance(blocks, Mapping):
        raise CodeError(f"blocks must be a mapping from position to block, not {type(blocks).__name__}")
    for index in blocks:
        if not is_integer(index) or not 0 <= index < code.n:
            raise CodeError(f"positions run from 0 to {code.n - 1}, not {index!r}")
    arrays = {index: as_block(block) for index, block in sorted(blocks.items())}
    _check_blocks(code, arrays)
    return arrays


def as_block(block: npt.ArrayLike) -> Array:
    """An argument of a caller's as a contiguous array of numbers."""
    try:
        return np.asarray(block, order="C")
    except (TypeError, ValueError) as error:
        raise CodeError(f"a block must be an array of numbers: {error}") from error


def _check_blocks(code: SystematicCode, arrays: Mapping[int, Array]) -> None:
    if not arrays:
        raise NotDecodableError(f"no blocks given; at least {code.k} are needed")
    first = next(iter(arrays))
    for index, array in arrays.items():
        # Integer parity blocks are wider than integer data blocks; all else is alike.
        model = arrays[first]
        is_wider = first < code.k <= index and array.dtype.kind == "i" and model.dtype.kind in "iu"
        if array.shape != model.shape or (array.dtype != model.dtype and not is_wider):
            raise CodeError(
                f"block {index} is {array.dtype} of shape {array.shape}, "
                f"block {first} {model.dtype} of shape {model.shape}"
            )
