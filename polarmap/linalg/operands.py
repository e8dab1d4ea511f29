"""Validate the factors of matrix products. Large matrices are checked block by block while they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.blocks.array_like import as_array_like as any_array
from polarmap.blocks.array_like import is_array_like, load_array_like
from polarmap.blocks.equal import check_not_masked_or_sparse
from polarmap.dtypes import Array, DType, check_supported_dtype, is_integer_dtype, to_real_dtype
from polarmap.errors import CodeError


class TransposedView:
    """The transpose of a matrix that may be too large for memory.

    Slicing rows of the transpose reads the corresponding columns of the matrix.
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix, self.dtype = matrix, matrix.dtype
        self.shape = (matrix.shape[1], matrix.shape[0])

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Array:
        rows, *columns = index if isinstance(index, tuple) else (index,)
        return np.asarray(self._matrix[(columns[0] if columns else slice(None), rows)]).T


class ValidatedMatrix:
    """A matrix whose rows are converted to a dtype and checked for NaN and inf whenever they are read.

    Attributes
    ----------
    max_abs : int
        The largest absolute value read so far; 0 for non-integer dtypes.
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
    """Return `matrix` as an object that has a shape and dtype and supports slicing, without loading it.

    Parameters
    ----------
    matrix : array-like
        An array, table or tensor, or the path of a .npy file.
    label : str
        Name of the matrix in error messages.
    sparse_advice : str
        Alternative to a sparse matrix that the error message recommends.

    Raises
    ------
    CodeError
        If `matrix` is not an array, or if it is masked or sparse.
    """
    matrix = load_array_like(matrix, label)
    check_not_masked_or_sparse(matrix, label, sparse_advice)
    if not is_array_like(matrix):
        try:
            matrix = np.asarray(matrix)
        except ValueError as error:
            raise CodeError(f"{label} is not a matrix: {error}") from error
    return np.asarray(matrix) if isinstance(matrix, np.matrix) else matrix


def check_matrix(matrix: Any, label: str, sparse_advice: str = "") -> Any:
    """Convert `matrix` to an object that can be partitioned and encoded.

    Raise CodeError if this is not possible. For sparse matrices, the message recommends `sparse_advice`,
    which is `toarray()` by default.
    """
    return check_matrix_shape(as_array_like(matrix, label, sparse_advice or f"{label}.toarray()"), label)


def check_matrix_shape(matrix: Any, label: str) -> Any:
    """Return `matrix` unchanged. Raise CodeError unless it has two non-empty axes and a supported dtype."""
    shape = tuple(matrix.shape)
    if len(shape) != 2 or 0 in shape:
        raise CodeError(f"{label} must be a matrix with rows and columns, not of shape {shape}")
    check_supported_dtype(matrix.dtype, label)
    return matrix


def choose_encoding_dtype(dtype: DType, product_dtype: DType) -> DType:
    """Return the dtype in which a factor is encoded, so that its parity blocks are as precise as the product.

    For example, a float32 factor of a float64 product is encoded as float64. A real factor of a complex
    product stays real.
    """
    if is_integer_dtype(product_dtype):
        return dtype
    return product_dtype if dtype.kind == "c" else to_real_dtype(product_dtype)


def check_operand(operand: Any, label: str = "the operand") -> Array:
    """Return a vector or matrix as an array of finite numbers. Raise CodeError if this is not possible."""
    try:
        array = np.asarray(any_array(operand, label))
    except ValueError as error:
        raise CodeError(f"{label} is not an array: {error}") from error
    if array.dtype.kind not in "biufc":
        raise CodeError(f"{label} has dtype {array.dtype}: it must be an array of numbers")
    check_finite(array, label)
    return array


def check_finite(array: Array, label: str) -> None:
    """Raise CodeError if the array contains NaN or inf.

    A single NaN would propagate to all parity blocks that are computed from it.
    """
    n_nonfinite = array.size - int(np.isfinite(array).sum()) if array.dtype.kind in "fc" else 0
    if n_nonfinite:
        raise CodeError(
            f"{label} has NaN or inf ({n_nonfinite} in a block of shape {array.shape}), which would spread "
            "to all parity blocks: replace them first"
        )


def check_parity_fits_int64(dtype: DType, max_abs: int, norm_inf: float, label: str) -> None:
    """Raise CodeError if parity blocks of 64-bit integers may overflow.

    A parity block is a weighted sum of data blocks, whose entries are at most `max_abs`. The absolute values
    of the weights sum to at most `norm_inf`. The entries of a parity block are therefore at most `norm_inf`
    times `max_abs`.

    An overflow matters only for products with real numbers. Products with integers can still be decoded,
    because parity blocks, products and decoding all use arithmetic modulo 2^64.
    """
    if is_integer_dtype(dtype) and dtype.itemsize == 8 and max_abs * norm_inf >= 1 << 63:
        raise CodeError(
            f"{label} has integers up to {max_abs:.2g}, whose parity blocks do not fit into 64 bits: for a "
            f"product with real numbers use {label}.astype(float)"
        )
