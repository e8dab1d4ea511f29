"""Products of blocks of matrices, as workers compute them: the functions of maps, by `functools.partial`.

Runs on workers: imports numpy. Functions of a module are known by their names where the package is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def multiply_block(operand: Array, dtype: np.dtype[Any], is_sparse: bool, block: Any) -> Array:
    """block @ operand in `dtype`, for a block that is an array or in CSR form.

    Integers wrap in `dtype` also where a parity block is wider than the data: equations that hold
    modulo 2^64 hold modulo a smaller power of two. In real products parity of uint64 is what it was
    before it wrapped, which `check_parity_fits_int64` has made sure int64 can hold.

    >>> multiply_block(np.array([1.0, 2.0]), np.dtype(float), False, np.eye(2)).tolist()
    [1.0, 2.0]
    """
    values = block.data if is_sparse else block
    if values.dtype == "u8" and dtype.kind in "fc":
        values = values.view("i8")
    values = values.astype(dtype, copy=False)
    if not is_sparse:
        return np.asarray(values @ operand)
    block.data = values  # the arrays are the worker's, the matrix is ours
    return np.asarray(block @ operand.astype(dtype, copy=False))


def multiply_block_pair(dtype: np.dtype[Any], block_pair: tuple[Array, Array]) -> Array:
    """A_i B_j from A_i and the transpose of B_j."""
    return np.matmul(block_pair[0], block_pair[1].T, dtype=dtype, casting="unsafe")  # type: ignore[no-any-return]


def compute_gram_block(weights: Array | None, dtype: np.dtype[Any], block_pair: tuple[Array, Array]) -> Array:
    """A_i^H diag(weights) A_j from the transposes of A_i and A_j; without weights these are 1.

    Of weights (rows, m) there are m such matrices, along the last axis.
    """
    left, right = block_pair
    if weights is None or weights.ndim == 1:
        right = right if weights is None else np.multiply(right, weights, dtype=dtype, casting="unsafe")
        return multiply_block_pair(dtype, (left.conj(), right))
    products = np.multiply(left.conj()[:, np.newaxis], right, dtype=dtype, casting="unsafe")
    return np.asarray(products @ weights.astype(dtype, copy=False))
