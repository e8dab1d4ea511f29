"""Tables, tensors and .npy files as numpy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polarmap.dtypes import Array
from polarmap.errors import CodeError
from polarmap.worker.pytree import naming

HOST_MEMORY = (1, 3, 11, 13)  # of DLPack: the CPU's, and what CUDA and ROCm share with it
KINDS = "iufc"
# By suffix: how a file that is no .npy file is read.
OTHER_FILES = {
    ".csv": "pandas.read_csv({!r})",
    ".parquet": "pandas.read_parquet({!r})",
    ".h5": "h5py.File({!r})['name of the dataset']",
    ".hdf5": "h5py.File({!r})['name of the dataset']",
    ".nc": "xarray.open_dataarray({!r})",
}


def is_table(value: Any) -> bool:
    """Whether it has labels, as a DataFrame or Series, that f would not see."""
    return hasattr(value, "to_numpy") and not hasattr(value, "chunks")


def is_frame(data: Any) -> bool:
    """Whether it is a table with columns, of pandas or polars."""
    return is_table(data) and hasattr(data, "columns") and len(data.shape) == 2


def note_of_labels(data: Any) -> str:
    """What to add to an error of an f that looks for the labels of a table; empty if there are none."""
    if not is_frame(data) or not len(data.columns):
        return ""
    return (
        f"f sees blocks of a {type(data).__name__} as numpy arrays, without labels: block[:, 0] is column "
        f"{data.columns[0]!r}; hedged_map passes tables"
    )


def frame_rows(frame: Any, low: int, high: int) -> Any:
    """The rows of a table at these positions, as a table."""
    return frame.iloc[low:high] if hasattr(frame, "iloc") else frame[low:high]


def table_array(table: Any, name: str) -> Array:
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


def tensor_array(data: Any, name: str) -> Array:
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
        return numbers_array(data, name)


def numbers_array(data: Any, name: str) -> Array:
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


def mapped_file(path: Path, name: str) -> Array:
    """A .npy file, mapped rather than read; never unpickled."""
    if not path.is_file():
        raise CodeError(
            f"{name} is the path {str(path)!r}, and there is no file of that name; of a Zarr or HDF5 store "
            "open the array and pass it"
        )
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        if advice := OTHER_FILES.get(path.suffix.lower()):
            use = f"pass what you read from it, as {advice.format(str(path))}"
            raise CodeError(f"{name} is the path {str(path)!r}, which is no .npy file: {use}") from error
        raise CodeError(f"{str(path)!r} cannot be read as a .npy file: {error}") from error
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise CodeError(f"{str(path)!r} holds several arrays; load the one you want and pass it")
    return mapped
