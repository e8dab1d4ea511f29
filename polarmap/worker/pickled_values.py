"""Any values <-> blocks of raw bytes: a pickle, with its large arrays out of band.

Trees of arrays need no pickle: see `pytree`. Runs on workers too: imports numpy and cloudpickle at most.
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

try:  # which takes what is defined in a function or a notebook
    from cloudpickle import Pickler, dumps
except ImportError:
    from pickle import Pickler, dumps

OUT_OF_BAND_BYTES = 4096  # from which on a buffer travels beside the pickle
BUFFER_ALIGNMENT = 64  # bytes, of such buffers
MAX_SMALL_PICKLE_BYTES = 1 << 14  # of the pickle of a value that travels with others


def pickle_to_array(value: Any) -> Array:
    """Any value that can be pickled as an array of bytes.

    It holds the number of runs of bytes and the length of each, as integers of 8 bytes, then the runs:
    the pickle, and the buffers that travel beside it. All of these are filled up, so that each is aligned.
    """
    return np.frombuffer(pickle_to_packed_tree(value).data, np.uint8)


def pickle_to_packed_tree(value: Any) -> PackedTree:
    """The same as it is sent: the arrays of a result are copied once."""
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
    """Return for each value what `unpickle_item` reads, or the exception that pickling it raises.

    One pickler is used for all values, because a new one takes longer than to pickle a small value. A value
    with large arrays becomes an array, as of `pickle_to_array`, and any other value a pickle.

    Parameters
    ----------
    values : iterable
    small_only : bool
        Return None for values with large arrays or a large pickle.
    pickler_class : type
        The class of the pickler.
    exclude_if : callable, optional
        Called with the list `reached` of the pickler. The value becomes None if the answer is true.

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
    """f may have taken it away, and what it returned may be numpy's."""
    if sys.modules.get("numpy") is None:
        sys.modules["numpy"] = np


def make_buffer_collector(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """The callback of a pickler that appends those buffers that travel beside the pickle."""

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw_buffer = buffer.raw()
        if raw_buffer.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw_buffer)
        return False

    return keep_in_band


def build_buffer_block(buffers: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The bytes of a block with these runs, the pickle first, piece by piece."""
    length_header = struct.pack(f"<{1 + len(buffers)}q", len(buffers), *map(len, buffers))
    return [
        piece
        for buffer in (length_header, *buffers)
        for piece in (buffer, bytes(-len(buffer) % BUFFER_ALIGNMENT))
    ]


def unpickle_array(array: Array) -> Any:
    """The value of which `pickle_to_array` made this; arrays in it lie in the block where that may be
    written.
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
    """Return the value of a pickle, or of an array of `pickle_to_array`."""
    return unpickle_array(data) if isinstance(data, np.ndarray) else pickle.loads(data)


def unpickle_data_or_file(data_or_path: bytes | str) -> Any:
    """The value of a block, of its bytes or its file, in which arrays stay until they are changed."""
    buffer: Any = data_or_path
    if isinstance(data_or_path, str):
        check_private_folder(os.path.dirname(os.path.dirname(data_or_path)))
        with open(data_or_path, "rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return unpickle_array(np.frombuffer(buffer, np.uint8))


def _ensure_writable(buffer: Array) -> Array:
    """A buffer that f may write into, and that compiled code finds aligned."""
    is_aligned = buffer.ctypes.data % np.dtype(np.longdouble).alignment == 0
    return buffer if buffer.flags.writeable and is_aligned else buffer.copy()
