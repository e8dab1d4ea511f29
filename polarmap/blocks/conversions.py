"""Tables, tensors and .npy files as numpy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polarmap.dtypes import Array
from polarmap.errors import CodeError
from polarmap.worker.pytree import describe_type

HOST_DEVICE_TYPES = (1, 3, 11, 13)  # of DLPack: the CPU's, and what CUDA and ROCm share with it
NUMERIC_KINDS = "iufc"
# By suffix: how a file that is no .npy file is read.
READER_BY_SUFFIX = {
    ".csv": "pandas.read_csv({!r})",
    ".parquet": "pandas.read_parquet({!r})",
    ".h5": "h5py.File({!r})['name of the dataset']",
    ".hdf5": "h5py.File({!r})['name of the dataset']",
    ".nc": "xarray.open_dataarray({!r})",
}


def is_table(value: Any) -> bool:
    """Whether it has labels, as a DataFrame or Series, that f would not see."""
    return hasattr(value, "to_numpy") and not hasattr(value, "chunks")


def is_dataframe(data: Any) -> bool:
    """Whether it is a table with columns, of pandas or polars."""
    return is_table(data) and hasattr(data, "columns") and len(data.shape) == 2


def describe_missing_table_labels(data: Any) -> str:
    """What to add to an error of an f that looks for the labels of a table; empty if there are none."""
    if not is_dataframe(data) or not len(data.columns):
        return ""
    return (
        f"f sees blocks of a {type(data).__name__} as numpy arrays, without labels: block[:, 0] is column "
        f"{data.columns[0]!r}; hedged_map passes tables"
    )


def slice_dataframe(dataframe: Any, start: int, stop: int) -> Any:
    """The rows of a table at these positions, as a table."""
    return dataframe.iloc[start:stop] if hasattr(dataframe, "iloc") else dataframe[start:stop]


def table_to_array(table: Any, argument_name: str) -> Array:
    """A frame or series as an array of the dtype that numpy.result_type finds for its columns."""
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
        advice = f"leave it out, as in {argument_name}.drop({drop_argument}), or encode it as numbers first"
        columns.append(_column_to_array(column, f"column {label!r} of {argument_name}", advice))
    if not columns:
        raise CodeError(
            f"{argument_name} is a {type(table).__name__} without columns: there is nothing to code"
        )
    dtype = np.result_type(*(column.dtype for column in columns))
    array = np.asarray(table.to_numpy())  # a view where all columns lie in one array
    return array if array.dtype == dtype else np.stack(columns, axis=1, dtype=dtype)


def _column_to_array(column: Any, description: str, advice: str) -> Array:
    """The values of a column; CodeError if they are no numbers."""
    values = np.asarray(column.to_numpy())
    if values.dtype.kind == "b":
        cast_call = ".astype(int)" if hasattr(column, "iloc") else ".cast(int)"
        raise CodeError(
            f"{description} has dtype {column.dtype}, and codes carry numbers: convert it with {cast_call}"
        )
    # integers with missing values, in older pandas
    if values.dtype.kind == "O" and _is_numeric_column(column):
        values = np.asarray(column.to_numpy(dtype=float, na_value=np.nan))
    if values.dtype.kind not in NUMERIC_KINDS:
        raise CodeError(f"{description} has dtype {column.dtype}, and codes carry numbers: {advice}")
    return values


def _is_numeric_column(column: Any) -> bool:
    """Whether a column's own dtype is one of numbers, whatever numpy makes of it."""
    return str(column.dtype).lower().startswith(("int", "uint", "float", "double"))


def tensor_to_array(data: Any, argument_name: str) -> Array:
    """A tensor of torch, JAX or any library with DLPack, in the memory where it lies."""
    advice = f"use numpy.asarray(...) of a copy in the memory of the host ({argument_name}.cpu() in torch)"
    try:
        device = int(data.__dlpack_device__()[0])
    except Exception:  # of libraries that know devices of their own; asked again below
        device = HOST_DEVICE_TYPES[0]
    if device not in HOST_DEVICE_TYPES:
        device_text = getattr(data, "device", f"of DLPack number {device}")
        raise CodeError(f"{argument_name} is {describe_type(data)} on device {device_text}: {advice}")
    if getattr(data, "requires_grad", False):
        raise CodeError(
            f"{argument_name} is {describe_type(data)} that records gradients, and these end where workers "
            f"begin: use {argument_name}.detach()"
        )
    try:
        return np.from_dlpack(data)
    except Exception:  # dtypes that DLPack or numpy does not have, and devices; each library has its own
        return to_numeric_array(data, argument_name)


def to_numeric_array(data: Any, argument_name: str) -> Array:
    """What the value's own __array__ gives, if these are numbers."""
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
        advice = (
            f"an array of numbers in the memory of the host, as numpy.asarray({argument_name}, dtype=float)"
        )
    return (
        f"{argument_name} is {describe_type(data)}{dtype_text}{device_text}, which is no array of numbers "
        f"that numpy knows: use {advice}"
    )


def memory_map_npy_file(path: Path, argument_name: str) -> Array:
    """A .npy file, mapped rather than read; never unpickled."""
    if not path.is_file():
        raise CodeError(
            f"{argument_name} is the path {str(path)!r}, and there is no file of that name; of a Zarr or "
            "HDF5 store open the array and pass it"
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        if reader := READER_BY_SUFFIX.get(path.suffix.lower()):
            suggestion = f"pass what you read from it, as {reader.format(str(path))}"
            raise CodeError(
                f"{argument_name} is the path {str(path)!r}, which is no .npy file: {suggestion}"
            ) from error
        raise CodeError(f"{str(path)!r} cannot be read as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise CodeError(f"{str(path)!r} holds several arrays; load the one you want and pass it")
    return array
