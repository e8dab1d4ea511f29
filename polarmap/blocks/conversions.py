"""Convert tables, tensors and .npy files to numpy arrays, without a copy if possible.

The functions know pandas, polars and DLPack only by their methods, so none of these libraries is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polarmap.dtypes import Array
from polarmap.errors import CodeError
from polarmap.worker.pytree import describe_type

# DLPack device types whose memory the CPU can access: CPU, CUDA host, ROCm host, CUDA managed.
HOST_DEVICE_TYPES = (1, 3, 11, 13)
NUMERIC_KINDS = "iufc"
# For the suffix of a file name, a Python expression that reads such a file. Error messages suggest it.
READER_BY_SUFFIX = {
    ".csv": "pandas.read_csv({!r})",
    ".parquet": "pandas.read_parquet({!r})",
    ".h5": "h5py.File({!r})['name of the dataset']",
    ".hdf5": "h5py.File({!r})['name of the dataset']",
    ".nc": "xarray.open_dataarray({!r})",
}


def is_table(value: Any) -> bool:
    """Return whether `value` is a pandas or polars DataFrame or Series."""
    return hasattr(value, "to_numpy") and not hasattr(value, "chunks")


def is_dataframe(data: Any) -> bool:
    """Return whether `data` is a pandas or polars DataFrame."""
    return is_table(data) and hasattr(data, "columns") and len(data.shape) == 2


def describe_missing_table_labels(data: Any) -> str:
    """Return a note for the error message if the user's function f fails because it expects a table.

    f receives the rows of a table as numpy arrays, without labels. The note is empty if `data` is not a
    table.
    """
    if not is_dataframe(data) or not len(data.columns):
        return ""
    return (
        f"f receives blocks of a {type(data).__name__} as numpy arrays, without labels: block[:, 0] is "
        f"column {data.columns[0]!r}. hedged_map passes tables with their labels"
    )


def slice_dataframe(dataframe: Any, start: int, stop: int) -> Any:
    """Return rows `start` to `stop` (exclusive) of a table by position."""
    return dataframe.iloc[start:stop] if hasattr(dataframe, "iloc") else dataframe[start:stop]


def table_to_array(table: Any, argument_name: str) -> Array:
    """Convert a DataFrame or Series to an array. Its dtype is `numpy.result_type` of all columns."""
    if not is_dataframe(table):
        return _column_to_array(
            table, f"{argument_name}, a {type(table).__name__},", "convert its values first"
        )
    labeled_columns = (
        table.items()
        if hasattr(table, "items")
        else [(series.name, series) for series in table.iter_columns()]
    )
    columns = []
    for label, column in labeled_columns:
        drop_argument = f"columns=[{label!r}]" if hasattr(table, "iloc") else repr(label)
        advice = f"drop it with {argument_name}.drop({drop_argument}), or convert it to numbers first"
        columns.append(_column_to_array(column, f"column {label!r} of {argument_name}", advice))
    if not columns:
        raise CodeError(
            f"{argument_name} is a {type(table).__name__} without columns: pass one with at least one column"
        )
    dtype = np.result_type(*(column.dtype for column in columns))
    array = np.asarray(table.to_numpy())  # a view if pandas stores all columns in one array
    return array if array.dtype == dtype else np.stack(columns, axis=1, dtype=dtype)


def _column_to_array(column: Any, description: str, advice: str) -> Array:
    """Return the values of a column as an array. Raise CodeError if they are not numbers."""
    values = np.asarray(column.to_numpy())
    if values.dtype.kind == "b":
        cast_call = ".astype(int)" if hasattr(column, "iloc") else ".cast(int)"
        raise CodeError(
            f"{description} has dtype {column.dtype}, which is not numeric: convert it with {cast_call}"
        )
    # Older versions of pandas convert integer columns with missing values to object arrays.
    if values.dtype.kind == "O" and _is_numeric_column(column):
        values = np.asarray(column.to_numpy(dtype=float, na_value=np.nan))
    if values.dtype.kind not in NUMERIC_KINDS:
        raise CodeError(f"{description} has dtype {column.dtype}, which is not numeric: {advice}")
    return values


def _is_numeric_column(column: Any) -> bool:
    """Return whether a table column has a numeric dtype, judged by the name of the dtype.

    The dtype of the converted numpy array is no reliable criterion: numpy converts some numeric columns to
    arrays of objects.
    """
    return str(column.dtype).lower().startswith(("int", "uint", "float", "double"))


def tensor_to_array(data: Any, argument_name: str) -> Array:
    """Convert a tensor from torch, JAX or any library that supports DLPack to a zero-copy array."""
    advice = (
        f"copy it to host memory with {argument_name}.cpu() (torch), numpy.asarray({argument_name}) (JAX) or "
        f"cupy.asnumpy({argument_name}) (CuPy)"
    )
    try:
        device = int(data.__dlpack_device__()[0])
    except Exception:  # Some libraries cannot report the device: try the conversion anyway.
        device = HOST_DEVICE_TYPES[0]
    if device not in HOST_DEVICE_TYPES:
        device_text = getattr(data, "device", f"with DLPack device type {device}")
        raise CodeError(f"{argument_name} is {describe_type(data)} on device {device_text}: {advice}")
    if getattr(data, "requires_grad", False):
        raise CodeError(
            f"{argument_name} is {describe_type(data)} that requires gradients, which cannot be propagated "
            f"through workers: use {argument_name}.detach()"
        )
    try:
        return np.from_dlpack(data)
    except Exception:  # Each library raises its own error for unsupported dtypes and devices.
        return to_numeric_array(data, argument_name)


def to_numeric_array(data: Any, argument_name: str) -> Array:
    """Convert a value to an array with `numpy.asarray`. Raise CodeError if the result is not numeric."""
    dtype = getattr(data, "dtype", None)
    try:
        array = np.asarray(data)
    except Exception as error:
        raise CodeError(_format_not_numeric_message(data, dtype, argument_name)) from error
    if array.dtype.kind not in NUMERIC_KINDS:
        raise CodeError(_format_not_numeric_message(data, dtype or array.dtype, argument_name))
    return array


def _format_not_numeric_message(data: Any, dtype: Any, argument_name: str) -> str:
    device = getattr(data, "device", None)
    device_text = "" if device is None else f" on device {device}"
    dtype_text = "" if dtype is None else f" of dtype {dtype}"
    if "bfloat" in str(dtype) or "float8" in str(dtype):
        advice = (
            f"{argument_name}.float()" if hasattr(data, "float") else f"{argument_name}.astype('float32')"
        )
    else:
        advice = f"an array of numbers in host memory, such as numpy.asarray({argument_name}, dtype=float)"
    return (
        f"{argument_name} is {describe_type(data)}{dtype_text}{device_text}, which numpy cannot convert to "
        f"an array of numbers: use {advice}"
    )


def memory_map_npy_file(path: Path, argument_name: str) -> Array:
    """Memory-map a .npy file. Raise CodeError if it is invalid or contains pickled objects."""
    if not path.is_file():
        raise CodeError(
            f"{argument_name} is the path {str(path)!r}, but this file does not exist. To map a Zarr or HDF5 "
            "array, open it and pass the array"
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        if reader := READER_BY_SUFFIX.get(path.suffix.lower()):
            suggestion = f"read it yourself, and pass {reader.format(str(path))}"
            raise CodeError(
                f"{argument_name} is the path {str(path)!r}, which is not a .npy file: {suggestion}"
            ) from error
        raise CodeError(f"{str(path)!r} cannot be read as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise CodeError(
            f"{str(path)!r} contains several arrays: load one of them with numpy.load, and pass it"
        )
    return array
