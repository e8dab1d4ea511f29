"""The one place where what people have (tables, tensors, paths of .npy files) becomes a numpy array."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.code.dtypes import Array
from polarmap.errors import CodeError
from polarmap.worker.pytree import naming

HOST_MEMORY = (1, 3, 11, 13)  # of DLPack: the CPU's, and what CUDA and ROCm share with it
KINDS = "iufc"


def as_array_like(data: Any, name: str = "data") -> Any:
    """Something with shape, dtype and slices that numpy knows, without a copy where there is a way.

    Tables become the array of their columns, tensors what they hold; numpy, memmap, Zarr, HDF5 and dask
    arrays are left where they are, and so is what is no array at all. CodeError for what holds no numbers.

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
        return _of_table(data, name)
    if hasattr(data, "__dlpack__"):
        return _of_tensor(data, name)
    if hasattr(data, "coded_blocks") and getattr(data, "key", None) is not None:
        raise CodeError(
            f"{name} is an encrypted coded array, and would be stored as it is here: pass {name}[:] if it "
            "may, coded_map and CodedOperator keep it encrypted"
        )
    if hasattr(data, "__array__") and not hasattr(data, "toarray"):
        if not is_array(data) or numpy_dtype(data) is None:
            return _by_numpy(data, name)
    elif hasattr(data, "collect_schema"):
        raise CodeError(f"{name} is {naming(data)}, which is not computed yet: use {name}.collect()")
    return data


def read_data(data: Any, name: str = "data") -> Any:
    """`as_array_like`, of the path of a .npy file too."""
    if isinstance(data, (str, os.PathLike)):
        return _mapped_file(Path(data), name)
    return as_array_like(data, name)


def read_leaf(value: Any) -> Any:
    """What stands in a block: an array of anything that numpy can read like one (Zarr, HDF5, dask)."""
    value = as_array_like(value, "a block")
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "toarray"):
        return value
    can_be_read = is_array(value) and hasattr(value, "__getitem__") and numpy_dtype(value) is not None
    return np.asarray(value) if can_be_read else value


def is_array(value: Any) -> bool:
    """Whether it has a shape and a dtype, as arrays of any library have."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_table(value: Any) -> bool:
    """Whether it has labels, as a DataFrame or Series, that f would not see."""
    return hasattr(value, "to_numpy") and not hasattr(value, "chunks")


def numpy_dtype(value: Any) -> np.dtype[Any] | None:
    """The dtype of what looks like an array; None if numpy does not know it."""
    try:
        dtype: np.dtype[Any] = np.dtype(value.dtype)
    except (AttributeError, TypeError, ValueError):
        return None
    return dtype


def is_sparse(data: Any) -> bool:
    """Whether it is a matrix or array of scipy.sparse, which must have been imported for that."""
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and bool(scipy_sparse.issparse(data))


def is_frame(data: Any) -> bool:
    """Whether it is a table with columns, of pandas or polars."""
    return is_table(data) and hasattr(data, "columns") and len(data.shape) == 2


def frame_rows(frame: Any, low: int, high: int) -> Any:
    """The rows of a table at these positions, as a table."""
    return frame.iloc[low:high] if hasattr(frame, "iloc") else frame[low:high]


def _of_table(table: Any, name: str) -> Array:
    """A frame or series as an array of the dtype that numpy.result_type finds for its columns."""
    if not is_frame(table):
        return _column(table, f"{name}, a {type(table).__name__},", "convert its values first")
    pairs = table.items() if hasattr(table, "items") else [(one.name, one) for one in table.iter_columns()]
    columns = []
    for label, column in pairs:
        dropped = f"columns=[{label!r}]" if hasattr(table, "iloc") else repr(label)
        advice = f"leave it out, as in {name}.drop({dropped}), or encode it as numbers first"
        columns.append(_column(column, f"column {label!r} of {name}", advice))
    if not columns:
        raise CodeError(f"{name} is a {type(table).__name__} without columns: there is nothing to code")
    dtype = np.result_type(*(column.dtype for column in columns))
    whole = np.asarray(table.to_numpy())  # a view where all columns lie in one array
    return whole if whole.dtype == dtype else np.stack(columns, axis=1, dtype=dtype)


def _column(column: Any, what: str, advice: str) -> Array:
    """The values of a column; CodeError if they are no numbers."""
    values = np.asarray(column.to_numpy())
    if values.dtype.kind == "b":
        cast = ".astype(int)" if hasattr(column, "iloc") else ".cast(int)"
        raise CodeError(f"{what} has dtype {column.dtype}, and codes carry numbers: convert it with {cast}")
    if values.dtype.kind == "O" and _is_numeric(column):  # integers with missing values, in older pandas
        values = np.asarray(column.to_numpy(dtype=float, na_value=np.nan))
    if values.dtype.kind not in KINDS:
        raise CodeError(f"{what} has dtype {column.dtype}, and codes carry numbers: {advice}")
    return values


def _is_numeric(column: Any) -> bool:
    """Whether a column's own dtype is one of numbers, whatever numpy makes of it."""
    return str(column.dtype).lower().startswith(("int", "uint", "float", "double"))


def _of_tensor(data: Any, name: str) -> Array:
    """A tensor of torch, JAX or any library with DLPack, in the memory where it lies."""
    advice = f"use numpy.asarray(...) of a copy in the memory of the host ({name}.cpu() in torch)"
    try:
        device = int(data.__dlpack_device__()[0])
    except Exception:  # of libraries that know devices of their own; asked again below
        device = HOST_MEMORY[0]
    if device not in HOST_MEMORY:
        where = getattr(data, "device", f"of DLPack number {device}")
        raise CodeError(f"{name} is {naming(data)} on device {where}: {advice}")
    if getattr(data, "requires_grad", False):
        raise CodeError(
            f"{name} is {naming(data)} that records gradients, and these end where workers begin: "
            f"use {name}.detach()"
        )
    try:
        return np.from_dlpack(data)
    except Exception:  # dtypes that DLPack or numpy does not have, and devices; each library has its own
        return _by_numpy(data, name)


def _by_numpy(data: Any, name: str) -> Array:
    """What the value's own __array__ gives, if these are numbers."""
    dtype = getattr(data, "dtype", None)
    try:
        array = np.asarray(data)
    except Exception as error:
        raise CodeError(_no_numbers(data, dtype, name)) from error
    if array.dtype.kind not in KINDS:
        raise CodeError(_no_numbers(data, dtype or array.dtype, name))
    return array


def _no_numbers(data: Any, dtype: Any, name: str) -> str:
    device = getattr(data, "device", None)
    where = "" if device is None else f" on device {device}"
    of = "" if dtype is None else f" of dtype {dtype}"
    if "bfloat" in str(dtype) or "float8" in str(dtype):
        use = f"{name}.float()" if hasattr(data, "float") else f"{name}.astype('float32')"
    else:
        use = f"an array of numbers in the memory of the host, as numpy.asarray({name}, dtype=float)"
    return f"{name} is {naming(data)}{of}{where}, which is no array of numbers that numpy knows: use {use}"


def _mapped_file(path: Path, name: str) -> Array:
    """A .npy file, mapped rather than read; never unpickled."""
    if not path.is_file():
        raise CodeError(
            f"{name} is the path {str(path)!r}, and there is no file of that name; of a Zarr or HDF5 store "
            "open the array and pass it"
        )
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CodeError(f"{str(path)!r} cannot be read as a .npy file: {error}") from error
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise CodeError(f"{str(path)!r} holds several arrays; load the one you want and pass it")
    return mapped
