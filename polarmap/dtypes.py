"""Type aliases for arrays, the dtypes that codes support, and the precision in which codes compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError

DType = np.dtype[Any]
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
UInt64Array = npt.NDArray[np.uint64]

FLOAT64_EPS = float(np.finfo(np.float64).eps)

# The dtype in which blocks of each dtype are summed. float16 and float32 are summed in the next more precise
# dtype, so that sums are rounded only once, when they are stored as parity blocks.
_ACCUMULATOR_CODES = {"f2": "f4", "f4": "f8", "f8": "f8", "c8": "f8", "c16": "f8"}
_DEFAULT_RTOL = {"f2": 1e-1, "f4": 1e-4, "f8": 1e-10}


def check_supported_dtype(dtype: npt.DTypeLike, array_name: str) -> DType:
    """Return `dtype` in native byte order. Raises CodeError if arrays of this dtype cannot be encoded.

    `array_name` is the name of the array in the error message.

    >>> check_supported_dtype(bool, "the data")
    Traceback (most recent call last):
    polarmap.errors.CodeError: the data has dtype bool: linear codes carry float16/32/64, \
complex64/128 and integers; convert it first, e.g. with .astype(float)
    """
    native_dtype = np.dtype(dtype)
    if native_dtype.kind in "iu" or _get_kind_and_itemsize(native_dtype) in _ACCUMULATOR_CODES:
        return native_dtype.newbyteorder("=")
    raise CodeError(
        f"{array_name} has dtype {native_dtype}: linear codes carry float16/32/64, complex64/128 and "
        "integers; convert it first, e.g. with .astype(float)"
    )


def is_integer(value: object) -> bool:
    """Return whether `value` is an integer. Booleans do not count as integers."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_integer_dtype(dtype: DType) -> bool:
    """Return whether `dtype` is a signed or unsigned integer type."""
    return dtype.kind in "iu"


def to_real_dtype(dtype: DType) -> DType:
    """Return the dtype of the real part of a complex dtype. A real dtype is returned unchanged."""
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype


def choose_accumulator_dtype(dtype: DType) -> DType:
    """Return the dtype in which sums of blocks of `dtype` are computed, to limit rounding errors.

    It is a real dtype that is more precise if there is one, for example float64 for float32 and complex64.
    For integers, it is `dtype` itself.
    """
    return dtype if is_integer_dtype(dtype) else np.dtype(_ACCUMULATOR_CODES[_get_kind_and_itemsize(dtype)])


def choose_parity_dtype(dtype: DType, max_abs_coefficient_sum: int) -> DType:
    """Return the dtype of parity blocks, which are weighted sums of data blocks.

    It is the dtype of the data or, for integers, a wider dtype in which the sums cannot overflow. There is no
    wider dtype for 64-bit integers, so their sums wrap around modulo 2^64, which decoding undoes exactly.

    Parameters
    ----------
    dtype : numpy.dtype
        The dtype of the data.
    max_abs_coefficient_sum : int
        The largest sum of the absolute weights of a parity block.

    Examples
    --------
    >>> [choose_parity_dtype(np.dtype(name), norm) for name, norm in (("u1", 40), ("u1", 400), ("u8", 40))]
    [dtype('int16'), dtype('int32'), dtype('uint64')]
    """
    if not is_integer_dtype(dtype):
        return dtype
    n_bits = 8 * dtype.itemsize - (dtype.kind == "i")
    for n_bytes in (2, 4, 8):
        if max_abs_coefficient_sum << n_bits < 1 << (8 * n_bytes - 1):
            return np.dtype(f"i{n_bytes}")
    return dtype if dtype.itemsize == 8 else np.dtype("i8")


def machine_epsilon(dtype: DType) -> float:
    """Return the distance from 1 to the next larger floating-point number, or 0 for integers."""
    return 0.0 if is_integer_dtype(dtype) else float(np.finfo(dtype).eps)


def get_default_rtol(dtype: DType) -> float:
    """Return the default permitted relative error of decoding: 1e-10 for float64, 0 for integers."""
    return 0.0 if is_integer_dtype(dtype) else _DEFAULT_RTOL[_get_kind_and_itemsize(to_real_dtype(dtype))]


def _get_kind_and_itemsize(dtype: DType) -> str:
    return f"{dtype.kind}{dtype.itemsize}"
