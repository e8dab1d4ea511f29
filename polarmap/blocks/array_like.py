"""Convert the data that users pass to objects that can be sliced like NumPy arrays.

This module recognizes the kinds of data, and `conversions` converts tables, tensors and .npy files.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.blocks.conversions import (
    is_table,
    memory_map_npy_file,
    table_to_array,
    tensor_to_array,
    to_numeric_array,
)
from polarmap.errors import CodeError
from polarmap.executors.encryption_keys import check_not_encrypted
from polarmap.worker.pytree import describe_type


def as_array_like(data: Any, argument_name: str = "data") -> Any:
    """Convert tables and tensors to numpy arrays, without a copy if possible.

    All other objects are returned unchanged, including numpy, Zarr, HDF5 and dask arrays.

    Parameters
    ----------
    data : object
        The data that the user passed.
    argument_name : str
        The name of the argument, for error messages.

    Raises
    ------
    CodeError
        If a table or tensor contains values that are not numbers, or if the data is not computed yet (a
        polars LazyFrame).

    Examples
    --------
    >>> class Tensor:
    ...     def __init__(self, array): self.array = array
    ...     def __dlpack_device__(self): return self.array.__dlpack_device__()
    ...     def __dlpack__(self, **options): return self.array.__dlpack__(**options)
    >>> held = np.arange(3.0)
    >>> np.shares_memory(as_array_like(Tensor(held)), held)
    True
    """
    if isinstance(data, (np.ndarray, np.generic, type)):
        return data
    if is_table(data):
        return table_to_array(data, argument_name)
    if hasattr(data, "__dlpack__"):
        return tensor_to_array(data, argument_name)
    if hasattr(data, "coded_blocks"):
        check_not_encrypted(data, argument_name)
    if hasattr(data, "__array__") and not hasattr(data, "toarray"):
        if not is_array_like(data) or get_numpy_dtype(data) is None:
            return to_numeric_array(data, argument_name)
    elif hasattr(data, "collect_schema"):
        raise CodeError(
            f"{argument_name} is {describe_type(data)}, which is not computed yet: "
            f"use {argument_name}.collect()"
        )
    return data


def load_array_like(data: Any, argument_name: str = "data") -> Any:
    """Convert user data like `as_array_like`. If `data` is a path, memory-map the .npy file at this path."""
    if isinstance(data, (str, os.PathLike)):
        return memory_map_npy_file(Path(data), argument_name)
    return as_array_like(data, argument_name)


def load_block_array(value: Any) -> Any:
    """Convert a value to a numpy array if it is an array, table or tensor. Return other values unchanged."""
    value = as_array_like(value, "a block")
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "toarray"):
        return value
    can_be_read = (
        is_array_like(value) and hasattr(value, "__getitem__") and get_numpy_dtype(value) is not None
    )
    return np.asarray(value) if can_be_read else value


def is_array_like(value: Any) -> bool:
    """Return whether `value` has the attributes shape and dtype, as arrays of any library do."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def get_numpy_dtype(value: Any) -> np.dtype[Any] | None:
    """Return the numpy dtype of an array-like value, or None if numpy has no equivalent."""
    try:
        dtype: np.dtype[Any] = np.dtype(value.dtype)
    except (AttributeError, TypeError, ValueError):
        return None
    return dtype


def is_scipy_sparse(data: Any) -> bool:
    """Return whether `data` is a scipy.sparse matrix or array, without importing scipy."""
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and bool(scipy_sparse.issparse(data))
