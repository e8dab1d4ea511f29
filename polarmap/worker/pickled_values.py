"""Pickle any value to an array of bytes, and unpickle it, without extra copies of its large arrays.

Calls with arbitrary arguments are sent to workers in this form. Trees of arrays need no pickle: see `pytree`.
This module also runs on workers, so it imports at most numpy and cloudpickle.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from polarmap.worker.private_files import check_private_folder
from polarmap.worker.pytree import Array, PackedTree

try:  # Prefer cloudpickle, which can also pickle functions and classes defined in a notebook.
    from cloudpickle import Pickler, dumps
except ImportError:
    from pickle import Pickler, dumps

# Buffers of at least this many bytes are pickled out of band: they are not copied into the pickle, but follow
# it.
OUT_OF_BAND_BYTES = 4096
BUFFER_ALIGNMENT = 64  # alignment of out-of-band buffers, in bytes
MAX_SMALL_PICKLE_BYTES = 1 << 14  # A value with a larger pickle gets its own task.


def pickle_to_array(value: Any) -> Array:
    """Pickle a value to an array of bytes. `unpickle_array` is the inverse.

    The array contains a header, the pickle, and the large buffers of the value, such as the data of arrays.
    The header consists of 8-byte integers: the number of parts after the header, and the length of each. All
    parts are padded to a multiple of BUFFER_ALIGNMENT bytes.
    """
    return np.frombuffer(pickle_to_packed_tree(value).data, np.uint8)


def pickle_to_packed_tree(value: Any) -> PackedTree:
    """Pickle a value to the same bytes as `pickle_to_array`, but as a `PackedTree`.

    This is the form in which results are sent. Large arrays in the value are copied only once.
    """
    _restore_numpy_module()
    buffers: list[memoryview] = []
    data = dumps(value, protocol=5, buffer_callback=make_buffer_callback(buffers))
    block = bytearray().join(build_buffer_block([data, *buffers]))
    return PackedTree(("array",), (("|u1", (len(block),)),), block)


def pickle_each(
    values: Iterable[Any],
    small_only: bool = False,
    pickler_class: Any = Pickler,
    exclude_if: Callable[[list[Any]], Any] | None = None,
) -> list[bytes | Array | Exception | None]:
    """Pickle several values separately. `unpickle_item` unpickles each of them.

    A value with large arrays becomes an array of bytes, as returned by `pickle_to_array`. Any other value
    becomes a pickle. A value that cannot be pickled is replaced by the exception. The values share one
    pickler, because creating a pickler takes longer than pickling a small value.

    Parameters
    ----------
    values : iterable
        The values to pickle.
    small_only : bool
        Whether to return None for each value with large arrays or a pickle above MAX_SMALL_PICKLE_BYTES.
    pickler_class : type
        The class of the pickler.
    exclude_if : callable, optional
        Called after each value with the pickler's list `reached` (the functions, classes and modules that the
        value refers to), unless the list is empty. If it returns true, None is returned for the value.
        Requires a `pickler_class` with this attribute.

    Examples
    --------
    >>> small, large = pickle_each(["a", np.zeros(10_000)], small_only=True)
    >>> pickle.loads(small), large
    ('a', None)
    """
    _restore_numpy_module()
    pickled_values, buffers = list[bytes | Array | Exception | None](), list[memoryview]()
    # A pickler only calls the `write` method of its file, and once for a small pickle. Appending to a list is
    # faster than writing to a BytesIO.
    pieces = list[bytes]()
    file = SimpleNamespace(write=pieces.append)
    pickler = pickler_class(file, protocol=5, buffer_callback=make_buffer_callback(buffers))
    reached: list[Any] = pickler.reached if exclude_if is not None else []
    for value in values:
        reached.clear()
        try:
            pickler.dump(value)
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
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
        pieces.clear()
        buffers.clear()
    return pickled_values


def _restore_numpy_module() -> None:
    """Restore `sys.modules["numpy"]` if the user's function has removed it, because pickling may need it."""
    if sys.modules.get("numpy") is None:
        sys.modules["numpy"] = np


def make_buffer_callback(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a function to use as a pickler's `buffer_callback`. It appends large buffers to `buffers`.

    Small buffers become part of the pickle.
    """

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw_buffer = buffer.raw()
        if raw_buffer.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw_buffer)
        return False

    return keep_in_band


def build_buffer_block(buffers: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return the byte strings whose concatenation is the array that `pickle_to_array` returns.

    These are a header with the length of each buffer, and then each buffer and its padding. The first buffer
    must be the pickle.
    """
    length_header = struct.pack(f"<{1 + len(buffers)}q", len(buffers), *map(len, buffers))
    return [
        piece
        for buffer in (length_header, *buffers)
        for piece in (buffer, bytes(-len(buffer) % BUFFER_ALIGNMENT))
    ]


def unpickle_array(array: Array) -> Any:
    """Return the value that `pickle_to_array` has pickled.

    Large arrays in the value share the memory of `array` if it is writable, and are copied otherwise.
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
    """Return a value that `pickle_each` has pickled, either as a pickle or as an array of bytes."""
    return unpickle_array(data) if isinstance(data, np.ndarray) else pickle.loads(data)


def unpickle_data_or_file(data_or_path: bytes | bytearray | str) -> Any:
    """Unpickle a value from the bytes of `pickle_to_array`, or from a file that contains these bytes.

    A string is the path of a file. The file is memory-mapped copy-on-write instead of being read. Raises
    OSError if other users could have replaced it, because unpickling can run arbitrary code.
    """
    buffer: Any = data_or_path
    if isinstance(data_or_path, str):
        check_private_folder(os.path.dirname(os.path.dirname(data_or_path)))
        with open(data_or_path, "rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return unpickle_array(np.frombuffer(buffer, np.uint8))


def _ensure_writable(buffer: Array) -> Array:
    """Return `buffer` itself if it is writable and aligned in memory, and a copy otherwise."""
    is_aligned = buffer.ctypes.data % np.dtype(np.longdouble).alignment == 0
    return buffer if buffer.flags.writeable and is_aligned else buffer.copy()
