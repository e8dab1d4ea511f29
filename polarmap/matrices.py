"""Matrices and vectors as factors of a product: what they may be, and the product on a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks import CodedBlocks
from polarmap.code.dtypes import DType, check_dtype, is_exact, real_dtype
from polarmap.errors import CodeError

Array = npt.NDArray[Any]


class Transposed:
    """The transpose of a matrix that need not lie in memory; reads columns as rows."""

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix
        self.shape = (matrix.shape[1], matrix.shape[0])
        self.dtype = matrix.dtype

    def __getitem__(self, rows: slice) -> Array:
        return np.asarray(self._matrix[:, rows]).T


class Cast:
    """A matrix read in another dtype."""

    def __init__(self, matrix: Any, dtype: DType) -> None:
        self._matrix, self.shape, self.dtype = matrix, matrix.shape, dtype

    def __getitem__(self, rows: slice | tuple[slice, slice]) -> Array:
        return np.asarray(self._matrix[rows]).astype(self.dtype)


def array_like(matrix: Any, name: str) -> Any:
    """Something with shape, dtype and slices, left where it is; CodeError for what parity cannot carry."""
    if isinstance(matrix, np.ma.MaskedArray):
        raise CodeError(f"{name} is a masked array, and parity blocks have no mask: use {name}.filled(0)")
    if hasattr(matrix, "toarray"):
        kind = type(matrix).__name__
        raise CodeError(f"{name} is a sparse {kind}, and parity blocks are not sparse: use {name}.toarray()")
    if not (hasattr(matrix, "shape") and hasattr(matrix, "dtype")):
        try:
            matrix = np.asarray(matrix)
        except ValueError as error:
            raise CodeError(f"{name} is no matrix: {error}") from error
    return np.asarray(matrix) if isinstance(matrix, np.matrix) else matrix


def checked(matrix: Any, name: str) -> Any:
    """A matrix that can be cut and coded; CodeError for anything else."""
    matrix = array_like(matrix, name)
    shape = tuple(matrix.shape)
    if len(shape) != 2 or 0 in shape:
        raise CodeError(f"{name} must be a matrix with rows and columns, not of shape {shape}")
    check_dtype(matrix.dtype, name)
    return matrix


def of_one_precision(left: Any, right: Any) -> tuple[Any, Any]:
    """Both factors so that no parity is coarser than the product: floats of one precision, or integers."""
    common = np.result_type(left.dtype, right.dtype)
    if is_exact(common):
        return left, right
    wanted = [common if one.dtype.kind == "c" else real_dtype(common) for one in (left, right)]
    cast = [one if one.dtype == dtype else Cast(one, dtype) for one, dtype in zip((left, right), wanted)]
    return cast[0], cast[1]


def checked_operand(operand: Any) -> Array:
    """A vector or matrix that lies here and that every worker gets."""
    array = np.asarray(operand)
    if array.dtype.kind not in "biufc":
        raise CodeError(f"the operand has dtype {array.dtype}: it must hold numbers")
    check_finite([array], "the operand")
    return array


def check_finite(arrays: Iterable[Array], name: str) -> None:
    """CodeError for NaN and inf, which parity would carry into every block that is decoded."""
    bad = sum(array.size - int(np.isfinite(array).sum()) for array in arrays if array.dtype.kind in "fc")
    if bad:
        raise CodeError(
            f"{name} holds {bad} NaN or inf, which parity would carry into every block that is decoded: "
            "replace them first"
        )


def check_no_wrap(coded: CodedBlocks, name: str) -> None:
    """CodeError where parity of 64-bit integers may have wrapped, which real products do not undo."""
    dtype = coded.blocks.dtypes[0]
    if dtype.kind not in "iu" or dtype.itemsize < 8:
        return
    blocks = [coded.leaves(index)[0] for index in range(coded.k)]
    largest = max(max(int(block.max()), -int(block.min())) for block in blocks)
    if largest * coded.code.growth >= 1 << 63:
        raise CodeError(
            f"{name} holds integers up to {largest:.2g}, whose parity blocks do not fit 64 bits: for a real "
            f"product use {name}.astype(float)"
        )


def times(operand: Array, dtype: DType) -> Callable[[Array], Array]:
    """f(block) = block @ operand in `dtype`, on a worker.

    Integers wrap in `dtype` also where a parity block is wider than the data: equations that hold
    modulo 2^64 hold modulo a smaller power of two.
    """
    return lambda block: np.matmul(block, operand, dtype=dtype, casting="unsafe")
