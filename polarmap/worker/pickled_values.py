"""Convert any picklable value to a block of raw bytes, with its large arrays out of band, and back.

Calls with arbitrary arguments are sent in this form. Trees of arrays need no pickle: see `pytree`. Runs on
workers too: imports numpy and cloudpickle at most.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from polarmap.worker.private_files import check_private_folder
from polarmap.worker.pytree import Array, PackedTree

try:  # cloudpickle also pickles functions and classes defined in a function or a notebook.
    from cloudpickle import Pickler, dumps
except ImportError:
    from pickle import Pickler, dumps

OUT_OF_BAND_BYTES = 4096  # bytes from which on a buffer is sent out of band
BUFFER_ALIGNMENT = 64  # alignment of out-of-band buffers, in bytes
MAX_SMALL_PICKLE_BYTES = 1 << 14  # maximum size of a pickle that is sent in a batch with other values


def pickle_to_array(value: Any) -> Array:
    """Return any picklable value as an array of bytes, which `unpickle_array` reads.

    The array begins with the number of buffers and the length of each, as 8-byte integers. The buffers
    follow: the pickle, and then the out-of-band buffers, each padded to BUFFER_ALIGNMENT.
    """
    return np.frombuffer(pickle_to_packed_tree(value).data, np.uint8)


def pickle_to_packed_tree(value: Any) -> PackedTree:
    """Return the bytes of `pickle_to_array` as a packed tree, ready to be sent. Arrays are copied once."""
    _restore_numpy_module()
    buffers: list[memoryview] = []
    data = dumps(value, protocol=5, buffer_callback=make_buffer_collector(buffers))
    block = bytearray().join(build_buffer_block([data, *buffers]))
    return PackedTree(("array",), (("|u1", (len(block),)),), block)


def pickle_each(
    values: Iterable[Any],
    small_only: bool = False,
    pickler_class: Any = Pickler,
    exclude_if: Callable[[list[Any]], Any] | None = None,
) -> list[bytes | Array | Exception | None]:
    """Return each value in the form that `unpickle_item` reads, or the exception that pickling it has raised.

    A value with large arrays becomes an array, as returned by `pickle_to_array`; any other value becomes a
    pickle. All values share one pickler, because creating one takes longer than pickling a small value.

    Parameters
    ----------
    values : iterable
        The values to pickle.
    small_only : bool
        Return None for values with large arrays or a pickle above MAX_SMALL_PICKLE_BYTES.
    pickler_class : type
        The class of the pickler.
    exclude_if : callable, optional
        Called after each value with the non-empty list `reached` of the pickler. If it returns true, None is
        returned for the value.

    Examples
    --------
    >>> small, large = pickle_each(["a", np.zeros(10_000)], small_only=True)
    >>> pickle.loads(small), large
    ('a', None)
    """
    _restore_numpy_module()
    pickled_values, buffers = list[bytes | Array | Exception | None](), list[memoryview]()
    file = io.BytesIO()
    pickler = pickler_class(file, protocol=5, buffer_callback=make_buffer_collector(buffers))
    reached: list[Any] = pickler.reached if exclude_if is not None else []
    for value in values:
        reached.clear()
        try:
            pickler.dump(value)
            data = file.getvalue()
            is_excluded = small_only and (buffers or len(data) > MAX_SMALL_PICKLE_BYTES)
            is_excluded = is_excluded or (exclude_if is not None and reached and exclude_if(reached))
            if is_excluded:
                pickled_values.append(None)
            elif buffers:
                block = bytearray().join(build_buffer_block([data, *buffers]))
                pickled_values.append(np.frombuffer(block, np.uint8))
            else:
                pickled_values.append(data)
        except Exception as error:
            pickled_values.append(error)
        pickler.clear_memo()
        file.seek(0)
        file.truncate()
        buffers.clear()
    return pickled_values


def _restore_numpy_module() -> None:
    """Restore the entry of numpy in `sys.modules` if f has removed it: pickling a result may need it."""
    if sys.modules.get("numpy") is None:
        sys.modules["numpy"] = np


def make_buffer_collector(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a `buffer_callback` for a pickler that appends out-of-band buffers to `buffers`."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw_buffer = buffer.raw()
        if raw_buffer.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw_buffer)
        return False

    return keep_in_band


def build_buffer_block(buffers: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return the consecutive pieces of a block: the header, the pickle and its buffers, each with padding."""
    length_header = struct.pack(f"<{1 + len(buffers)}q", len(buffers), *map(len, buffers))
    return [
        piece
        for buffer in (length_header, *buffers)
        for piece in (buffer, bytes(-len(buffer) % BUFFER_ALIGNMENT))
    ]


def unpickle_array(array: Array) -> Any:
    """Return the value that `pickle_to_array` has pickled.

    Its large arrays are views of `array` if that is writable, and copies otherwise.
    """
    (n_buffers,) = struct.unpack_from("<q", array.data)
    end, all_buffers = 8 + 8 * n_buffers, []
    for length in struct.unpack_from(f"<{n_buffers}q", array.data, 8):
        start = end + -end % BUFFER_ALIGNMENT
        end = start + length
        all_buffers.append(array[start:end])
    data, *buffers = all_buffers
    return pickle.loads(data.data, buffers=map(_ensure_writable, buffers))


def unpickle_item(data: bytes | Array) -> Any:
    """Return the value of a pickle, or of an array that `pickle_to_array` has returned."""
    return unpickle_array(data) if isinstance(data, np.ndarray) else pickle.loads(data)


def unpickle_data_or_file(data_or_path: bytes | bytearray | str) -> Any:
    """Return the value that `pickle_to_array` has pickled, given the bytes or the path of a file of them.

    A file is memory-mapped copy-on-write. Raises OSError if other users may write to its folder.
    """
    buffer: Any = data_or_path
    if isinstance(data_or_path, str):
        check_private_folder(os.path.dirname(os.path.dirname(data_or_path)))
        with open(data_or_path, "rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return unpickle_array(np.frombuffer(buffer, np.uint8))


def _ensure_writable(buffer: Array) -> Array:
    """Return a buffer that is writable and aligned: the same one if possible, else a copy."""
    is_aligned = buffer.ctypes.data % np.dtype(np.longdouble).alignment == 0
    return buffer if buffer.flags.writeable and is_aligned else buffer.copy()
