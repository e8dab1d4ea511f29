"""Matrices and vectors as factors of a product, and what they may be."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.blocks.array_like import as_array_like as any_array
from polarmap.blocks.array_like import is_array_like, load_array_like
from polarmap.blocks.equal import check_not_masked_or_sparse
from polarmap.dtypes import Array, DType, check_supported_dtype, is_integer_dtype, to_real_dtype
from polarmap.errors import CodeError


class TransposedView:
    """The transpose of a matrix that need not lie in memory; reads columns as rows."""

    def __init__(self, matrix: Any) -> None:
        self._matrix, self.dtype = matrix, matrix.dtype
        self.shape = (matrix.shape[1], matrix.shape[0])

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Array:
        rows, *columns = index if isinstance(index, tuple) else (index,)
        return np.asarray(self._matrix[(columns[0] if columns else slice(None), rows)]).T


class ValidatedMatrix:
    """A matrix, in a dtype if one is given, that says what is wrong with it as it is read.

    max_abs : the largest absolute value read so far, of integers.
    """

    def __init__(self, matrix: Any, label: str, dtype: DType | None = None) -> None:
        self._matrix, self._label = matrix, label
        self.shape, self.dtype = matrix.shape, matrix.dtype if dtype is None else dtype
        self.chunks = getattr(matrix, "chunks", None)
        self.max_abs = 0

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Array:
        values = np.asarray(self._matrix[index], self.dtype)
        check_finite(values, self._label)
        if is_integer_dtype(values.dtype) and values.size:
            self.max_abs = max(self.max_abs, int(values.max()), -int(values.min()))
        return values


def as_array_like(matrix: Any, label: str, sparse_advice: str) -> Any:
    """Something with shape, dtype and slices, left where it is; CodeError for what parity cannot carry.

    sparse_advice : what to use of a sparse matrix.
    """
    matrix = load_array_like(matrix, label)
    check_not_masked_or_sparse(matrix, label, sparse_advice)
    if not is_array_like(matrix):
        try:
            matrix = np.asarray(matrix)
        except ValueError as error:
            raise CodeError(f"{label} is no matrix: {error}") from error
    return np.asarray(matrix) if isinstance(matrix, np.matrix) else matrix


def check_matrix(matrix: Any, label: str, sparse_advice: str = "") -> Any:
    """A matrix that can be cut and coded; CodeError for anything else.

    sparse_advice : what to use of a sparse one; by default it as an array.
    """
    return check_matrix_shape(as_array_like(matrix, label, sparse_advice or f"{label}.toarray()"), label)


def check_matrix_shape(matrix: Any, label: str) -> Any:
    """An array that can be cut and coded as a matrix; CodeError for one of other axes or dtypes."""
    shape = tuple(matrix.shape)
    if len(shape) != 2 or 0 in shape:
        raise CodeError(f"{label} must be a matrix with rows and columns, not of shape {shape}")
    check_supported_dtype(matrix.dtype, label)
    return matrix


def choose_encoding_dtype(dtype: DType, product_dtype: DType) -> DType:
    """In which a factor of `dtype` is coded, so that no parity is coarser than the product."""
    if is_integer_dtype(product_dtype):
        return dtype
    return product_dtype if dtype.kind == "c" else to_real_dtype(product_dtype)


def check_operand(operand: Any, label: str = "the operand") -> Array:
    """A vector or matrix that lies here and that every worker gets."""
    try:
        array = np.asarray(any_array(operand, label))
    except ValueError as error:
        raise CodeError(f"{label} is no array: {error}") from error
    if array.dtype.kind not in "biufc":
        raise CodeError(f"{label} has dtype {array.dtype}: it must hold numbers")
    check_finite(array, label)
    return array


def check_finite(array: Array, label: str) -> None:
    """CodeError for NaN and inf, which spread to all that they are mixed with."""
    n_nonfinite = array.size - int(np.isfinite(array).sum()) if array.dtype.kind in "fc" else 0
    if n_nonfinite:
        raise CodeError(
            f"{label} holds NaN or inf ({n_nonfinite} in a block of shape {array.shape}), which spread to "
            "all they are mixed with: replace them first"
        )


def check_parity_fits_int64(dtype: DType, max_abs: int, norm_inf: float, label: str) -> None:
    """CodeError where parity of 64-bit integers may have wrapped, which real products do not undo."""
    if is_integer_dtype(dtype) and dtype.itemsize == 8 and max_abs * norm_inf >= 1 << 63:
        raise CodeError(
            f"{label} holds integers up to {max_abs:.2g}, whose parity blocks do not fit 64 bits: for a real "
            f"product use {label}.astype(float)"
        )
