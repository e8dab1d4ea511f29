"""Matrices and vectors as factors of a product, and what they may be."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.blocks.array_like import as_array_like as any_array
from polarmap.blocks.array_like import is_array, read_data
from polarmap.blocks.equal import refuse_masked_and_sparse
from polarmap.dtypes import Array, DType, check_dtype, is_integer_dtype, real_dtype
from polarmap.errors import CodeError


class TransposedMatrix:
    """The transpose of a matrix that need not lie in memory; reads columns as rows."""

    def __init__(self, matrix: Any) -> None:
        self._matrix, self.dtype = matrix, matrix.dtype
        self.shape = (matrix.shape[1], matrix.shape[0])

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Array:
        rows, *columns = index if isinstance(index, tuple) else (index,)
        return np.asarray(self._matrix[(columns[0] if columns else slice(None), rows)]).T


class CheckedMatrix:
    """A matrix, in a dtype if one is given, that says what is wrong with it as it is read.

    largest : the largest absolute value read so far, of integers.
    """

    def __init__(self, matrix: Any, name: str, dtype: DType | None = None) -> None:
        self._matrix, self._name = matrix, name
        self.shape, self.dtype = matrix.shape, matrix.dtype if dtype is None else dtype
        self.chunks = getattr(matrix, "chunks", None)
        self.largest = 0

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Array:
        part = np.asarray(self._matrix[index], self.dtype)
        check_finite(part, self._name)
        if is_integer_dtype(part.dtype) and part.size:
            self.largest = max(self.largest, int(part.max()), -int(part.min()))
        return part


def as_array_like(matrix: Any, name: str, for_sparse: str) -> Any:
    """Something with shape, dtype and slices, left where it is; CodeError for what parity cannot carry.

    for_sparse : what to use of a sparse matrix.
    """
    matrix = read_data(matrix, name)
    refuse_masked_and_sparse(matrix, name, for_sparse)
    if not is_array(matrix):
        try:
            matrix = np.asarray(matrix)
        except ValueError as error:
            raise CodeError(f"{name} is no matrix: {error}") from error
    return np.asarray(matrix) if isinstance(matrix, np.matrix) else matrix


def check_matrix(matrix: Any, name: str, for_sparse: str = "") -> Any:
    """A matrix that can be cut and coded; CodeError for anything else.

    for_sparse : what to use of a sparse one; by default it as an array.
    """
    return check_two_axes(as_array_like(matrix, name, for_sparse or f"{name}.toarray()"), name)


def check_two_axes(matrix: Any, name: str) -> Any:
    """An array that can be cut and coded as a matrix; CodeError for one of other axes or dtypes."""
    shape = tuple(matrix.shape)
    if len(shape) != 2 or 0 in shape:
        raise CodeError(f"{name} must be a matrix with rows and columns, not of shape {shape}")
    check_dtype(matrix.dtype, name)
    return matrix


def factor_dtype(dtype: DType, product: DType) -> DType:
    """In which a factor of `dtype` is coded, so that no parity is coarser than the product."""
    if is_integer_dtype(product):
        return dtype
    return product if dtype.kind == "c" else real_dtype(product)


def check_operand(operand: Any, name: str = "the operand") -> Array:
    """A vector or matrix that lies here and that every worker gets."""
    try:
        array = np.asarray(any_array(operand, name))
    except ValueError as error:
        raise CodeError(f"{name} is no array: {error}") from error
    if array.dtype.kind not in "biufc":
        raise CodeError(f"{name} has dtype {array.dtype}: it must hold numbers")
    check_finite(array, name)
    return array


def check_finite(array: Array, name: str) -> None:
    """CodeError for NaN and inf, which spread to all that they are mixed with."""
    bad = array.size - int(np.isfinite(array).sum()) if array.dtype.kind in "fc" else 0
    if bad:
        raise CodeError(
            f"{name} holds NaN or inf ({bad} in a block of shape {array.shape}), which spread to all they "
            "are mixed with: replace them first"
        )


def check_no_wrap(dtype: DType, largest: int, growth: float, name: str) -> None:
    """CodeError where parity of 64-bit integers may have wrapped, which real products do not undo."""
    if is_integer_dtype(dtype) and dtype.itemsize == 8 and largest * growth >= 1 << 63:
        raise CodeError(
            f"{name} holds integers up to {largest:.2g}, whose parity blocks do not fit 64 bits: for a real "
            f"product use {name}.astype(float)"
        )
