"""How calls travel, and any values: pickled, with the large arrays inside as raw bytes beside.

Runs on workers too: imports numpy and cloudpickle at most.
"""

from __future__ import annotations

import mmap
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.worker.messages import describe, plain
from polarmap.worker.pytree import Packed, naming

Array = npt.NDArray[Any]

BESIDE_BYTES = 4096  # from which on a buffer travels beside the pickle
ALIGNMENT = 64  # bytes, of such buffers


def any_call(
    f: Callable[..., Any],
    star: bool = False,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    is_pickled: bool = False,
    is_group: bool = False,
    keeps_exceptions: bool = False,
) -> Callable[[Any], Packed]:
    """f as workers call it, with what a block stands for; its result as `packed_block` has it.

    A closure, so that f's own modules travel with it.

    star : whether the value of a block is all positional arguments, rather than the first.
    args, kwargs : further arguments of every call.
    is_pickled : whether blocks are made by `to_block`; else they are the values.
    is_group : whether the value of a block is a list of what f is called with, one after the other.
    keeps_exceptions : of a group, whether what f raises on one of these stands in the place of its result:
        each is told as (True, its result) or (False, its error as plain data).

    >>> call = any_call(dict.get, args=("a",), is_pickled=True)
    >>> from_block(np.frombuffer(call(to_block({"a": {1, 2}})).data, np.uint8))
    {1, 2}
    """
    named = dict(kwargs or {})

    def call_one(value: Any) -> Any:
        return f(*(value if star else (value,)), *args, **named)

    def told(value: Any) -> Any:
        if not keeps_exceptions:
            return call_one(value)
        try:
            return True, call_one(value)
        except Exception as error:
            return False, plain(describe(error))

    def call(block: Any) -> Packed:
        value = from_block(block) if is_pickled else block
        result = [told(one) for one in value] if is_group else call_one(value)
        try:
            return packed_block(result)
        except Exception as error:
            raise TypeError(f"f returned {naming(result)} that cannot be pickled: {error}") from error

    return call


def run_call(block: Array) -> Packed:
    """What the call of a block returns, as `packed_block` has it.

    f may be one that was pickled before: a block as bytes, or the path of its file.

    >>> from_block(np.frombuffer(run_call(to_block((divmod, (7, 2), {}))).data, np.uint8))
    (3, 1)
    """
    f, args, kwargs = from_block(block)
    f = loaded(f) if isinstance(f, (bytes, str)) else f
    return packed_block(f(*args, **kwargs))


def call_each(f: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Several calls as one.

    >>> call_each(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    return [f(*each) for each in arguments]


def to_block(value: Any) -> Array:
    """Any value that can be pickled as an array of bytes.

    It holds the number of runs of bytes and the length of each, as integers of 8 bytes, then the runs:
    the pickle, and the buffers that travel beside it. All of these are filled up, so that each is aligned.
    """
    return np.frombuffer(packed_block(value).data, np.uint8)


def packed_block(value: Any) -> Packed:
    """The same as it is sent: the arrays of a result are copied once."""
    if sys.modules.get("numpy") is None:  # f has taken it away, and what it returned may be numpy's
        sys.modules["numpy"] = np
    buffers: list[memoryview] = []
    data = _dumps()(value, protocol=5, buffer_callback=taking_large(buffers))
    block = bytearray().join(block_of_runs([data, *buffers]))
    return Packed(("array",), (("|u1", (len(block),)),), block)


def taking_large(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """The callback of a pickler that appends those buffers that travel beside the pickle."""

    def goes_with_the_pickle(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BESIDE_BYTES:
            return True
        buffers.append(raw)
        return False

    return goes_with_the_pickle


def block_of_runs(runs: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The bytes of a block with these runs, the pickle first, piece by piece."""
    head = np.array([len(runs), *map(len, runs)], "<i8").tobytes()
    for run in (head, *runs):
        yield run
        yield bytes(-len(run) % ALIGNMENT)


def from_block(block: Array) -> Any:
    """The value of which `to_block` made this; arrays in it lie in the block where that may be written."""
    head = 8 + 8 * int(block[:8].view("<i8")[0])
    end, runs = head + -head % ALIGNMENT, []
    for length in block[8:head].copy().view("<i8").tolist():
        runs.append(block[end : end + length])
        end += length + -length % ALIGNMENT
    data, *buffers = runs
    return pickle.loads(data.tobytes(), buffers=map(_writable, buffers))


def loaded(data: bytes | str) -> Any:
    """The value of a block, of its bytes or its file, in which arrays stay until they are changed."""
    memory: Any = data
    if isinstance(data, str):
        with open(data, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return from_block(np.frombuffer(memory, np.uint8))


def _writable(buffer: Array) -> Array:
    """A buffer that f may write into, and that compiled code finds aligned."""
    is_aligned = buffer.ctypes.data % np.dtype(np.longdouble).alignment == 0
    return buffer if buffer.flags.writeable and is_aligned else buffer.copy()


def _dumps() -> Callable[..., bytes]:
    """That of cloudpickle, which takes what is defined in a function or a notebook, where it is installed."""
    try:
        from cloudpickle import dumps
    except ImportError:
        from pickle import dumps
    return dumps  # type: ignore[no-any-return]
