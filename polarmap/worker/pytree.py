"""Values <-> raw bytes: trees of arrays leaf by leaf, any other as a pickle with its large arrays beside.

A tree is a nest of tuples, lists and dicts. Runs on workers too: imports numpy and cloudpickle at most.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.worker.private_files import check_private

try:  # which takes what is defined in a function or a notebook
    from cloudpickle import Pickler, dumps
except ImportError:
    from pickle import Pickler, dumps

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Layout = tuple[tuple[Any, Shape], ...]  # of each leaf dtype (its string, unless it has fields) and shape


# (kind,) for a leaf, kind being what it was: "array", "matrix", "numpy" scalar or "python" number or
# string; (type, keys, children) for a container. Plain tuples, so that any pickle carries them.
Structure = tuple[Any, ...]

# Begins the structure of two results in one: (BOTH, the number of arrays of the first one, its structure, the
# structure of the second one).
BOTH = "both"
BESIDE_BYTES = 4096  # from which on a buffer travels beside the pickle
ALIGNMENT = 64  # bytes, of such buffers
SMALL_BYTES = 1 << 14  # of the pickle of a value that travels with others
PYTHON = (bool, int, float, complex, str, bytes)
REMEDIES = {
    "to_numpy": "use its .to_numpy()",
    "toarray": "use its .toarray()",
    "__array__": "use numpy.asarray(...) of it",
    "keys": "use dict(...) of it",
    "__iter__": "use list(...) of it, or a numpy array",
}


class Packed(NamedTuple):
    """A tree as one run of bytes plus what it takes to read them; never a pickled array."""

    structure: Structure
    layout: Layout
    data: bytes | bytearray | memoryview


def unpacked(layout: Layout, data: bytes | bytearray | memoryview, is_writable: bool = True) -> list[Array]:
    """The arrays of this layout where they lie in a row of bytes; as copies if they are to be writable there.

    ValueError unless there are just as many bytes.
    """
    leaves, start = [], 0
    for name, shape in layout:
        dtype = np.dtype(name)
        end = start + dtype.itemsize * math.prod(shape)
        if end > len(data):
            raise ValueError(f"a result has {len(data)} bytes, not {end} or more")
        if dtype.itemsize:
            leaf = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        else:
            leaf = np.empty(shape, dtype)
        leaves.append(leaf.copy() if is_writable and not leaf.flags.writeable else leaf)
        start = end
    if start != len(data):
        raise ValueError(f"a result has {len(data)} bytes, not {start}")
    return leaves


def flatten(tree: Any, read: Callable[[Any], Any] | None = None) -> tuple[list[Array], Structure]:
    """The leaves of a tree, left to right, and its structure.

    What would not come back as it is raises a TypeError. `read`: what makes an array of a leaf that may be
    none yet, as a table; the tree is then not what f returned, but a block.

    >>> leaves, structure = flatten({"a": 1.5, "b": (np.zeros(2), np.ones(1))})
    >>> [leaf.tolist() for leaf in leaves]
    [1.5, [0.0, 0.0], [1.0]]
    >>> unflatten(structure, leaves)["a"]
    1.5
    """
    leaves: list[Array] = []
    try:
        return leaves, _flatten(tree, leaves, "f returned" if read is None else "it holds", read)
    except RecursionError:
        raise TypeError("lists, tuples or dicts are nested without end, or nearly so") from None


def _flatten(tree: Any, leaves: list[Array], where: str, read: Callable[[Any], Any] | None) -> Structure:
    """The structure of a tree, whose leaves are appended; `where` begins what is said of a wrong one."""
    if isinstance(tree, (dict, tuple, list)):
        _check_container(tree, where)
        children = tree.values() if isinstance(tree, dict) else tree
        inside = f"{where} {naming(tree)} with"
        keys = tuple(tree) if isinstance(tree, dict) else ()
        return type(tree), keys, tuple(_flatten(child, leaves, inside, read) for child in children)
    tree = tree if read is None else read(tree)
    kind = _kind(tree, where)
    leaves.append(_as_array(tree))
    return (kind,)


def _check_container(tree: Any, where: str) -> None:
    """TypeError for one that could not be put together again from its children."""
    kind = type(tree)
    if kind in (dict, tuple, list, OrderedDict) or hasattr(kind, "_make"):  # of named tuples
        return
    plain = next(base for base in (dict, tuple, list) if isinstance(tree, base))
    if kind.__init__ is plain.__init__ and kind.__new__ is plain.__new__ and not getattr(tree, "__dict__", 0):
        return
    raise TypeError(f"{where} {naming(tree)}: use {plain.__name__}(...) of it")


def is_masked(value: Any) -> bool:
    """Whether it is a masked array: numpy.ma is not imported to tell, as that takes time, and files."""
    masked = sys.modules.get("numpy.ma")
    return masked is not None and isinstance(value, masked.MaskedArray)


def _kind(leaf: Any, where: str) -> str:
    """What a leaf is, to be made again from an array; TypeError if it cannot be."""
    if type(leaf) is np.ndarray:
        return "array"
    if is_masked(leaf):
        raise TypeError(f"{where} a masked array, whose mask would be lost: use .filled()")
    if isinstance(leaf, np.matrix):
        return "matrix"
    if isinstance(leaf, np.generic):
        return "numpy"
    if type(leaf) in PYTHON:
        if type(leaf) is int and not -(2**63) <= leaf < 2**64:
            bits = leaf.bit_length()
            raise TypeError(f"{where} an integer of {bits} bits, numpy's have 64: use float(...)")
        return "python"
    if type(leaf) is np.memmap:
        return "array"
    raise TypeError(f"{where} {naming(leaf)}: {_remedy(leaf)}")


def naming(value: Any) -> str:
    """Return what a value is, for an error."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _remedy(value: Any) -> str:
    """What to use instead."""
    found = [text for verb, text in REMEDIES.items() if hasattr(value, verb)]
    return found[0] if found else "use arrays, numbers, or tuples, lists and dicts of these"


def _as_array(leaf: Any) -> Array:
    """An array that holds all of a leaf; of an empty string, which numpy pads, one without entries."""
    if type(leaf) in (str, bytes) and not leaf:
        return np.empty(0, "U1" if isinstance(leaf, str) else "S1")
    return np.asarray(leaf)


def unflatten(structure: Structure, leaves: Sequence[Array]) -> Any:
    """The tree with this structure and these leaves."""
    if len(structure) == 1:
        return _as_it_was(structure[0], leaves[0])
    return _built(structure, iter(leaves))


def _built(part: Structure, remaining: Iterator[Array]) -> Any:
    """A tree of the next leaves. A closure that calls itself would hold them until it is collected."""
    if len(part) == 1:
        return _as_it_was(part[0], next(remaining))
    kind, keys, parts = part
    children = [_built(child, remaining) for child in parts]
    if issubclass(kind, dict):
        return kind(zip(keys, children))
    return kind._make(children) if hasattr(kind, "_make") else kind(children)


def _as_it_was(kind: str, leaf: Array) -> Any:
    if kind == "array":
        return leaf
    if kind == "matrix":
        return leaf.view(np.matrix)
    if kind == "numpy":
        return leaf[()]
    if leaf.dtype.kind == "S":  # numpy takes zeros at the end of a string for padding
        return leaf.tobytes()
    if leaf.dtype.kind == "U":
        return leaf.astype(leaf.dtype.newbyteorder("<")).tobytes().decode("utf-32-le", "surrogatepass")
    return leaf.item()


def pack(tree: Any) -> Packed:
    """A tree as raw bytes; one that is packed already stays as it is.

    >>> pack((1, np.arange(3, dtype="i2"))).layout
    (('<i8', ()), ('<i2', (3,)))
    """
    # Where f was pickled with what runs on workers, its class Packed is another one than that of this module.
    if (type(tree).__module__, type(tree).__name__) == (Packed.__module__, Packed.__name__):
        return Packed(*tree)
    leaves, structure = flatten(tree)
    return pack_leaves(leaves, structure)


def pack_leaves(leaves: Sequence[Array], structure: Structure) -> Packed:
    """`pack` of a tree that is already flat."""
    for leaf in leaves:
        if leaf.dtype.hasobject:
            raise TypeError(f"a leaf has dtype {leaf.dtype}: it must be an array of numbers or a number")
    return Packed(structure, layout_of(leaves), b"".join([leaf.tobytes() for leaf in leaves]))


def layout_of(leaves: Sequence[Array]) -> Layout:
    """Return dtype and shape of each leaf; a dtype whose string does not say it all stands for itself."""
    return tuple([(_spelled(leaf.dtype), leaf.shape) for leaf in leaves])


def layout_bytes(layout: Layout) -> int:
    """Bytes of arrays of this layout."""
    return sum(np.dtype(name).itemsize * math.prod(shape) for name, shape in layout)


def _spelled(dtype: np.dtype[Any]) -> str | np.dtype[Any]:
    return dtype.str if np.dtype(dtype.str) == dtype else dtype


# --- any value --------------------------------------------------------------------------------------


def to_block(value: Any) -> Array:
    """Any value that can be pickled as an array of bytes.

    It holds the number of runs of bytes and the length of each, as integers of 8 bytes, then the runs:
    the pickle, and the buffers that travel beside it. All of these are filled up, so that each is aligned.
    """
    return np.frombuffer(packed_block(value).data, np.uint8)


def packed_block(value: Any) -> Packed:
    """The same as it is sent: the arrays of a result are copied once."""
    _restore_numpy()
    buffers: list[memoryview] = []
    data = dumps(value, protocol=5, buffer_callback=taking_large(buffers))
    block = bytearray().join(block_of_runs([data, *buffers]))
    return Packed(("array",), (("|u1", (len(block),)),), block)


def pickles(
    values: Iterable[Any],
    is_small: bool = False,
    pickler_type: Any = Pickler,
    select: Callable[[list[Any]], Any] | None = None,
) -> list[bytes | Exception | None]:
    """A pickle of each value, which can be read by itself, or what is raised for it.

    By one pickler: to make one takes longer than to pickle a small value.

    is_small : None for what is large, or has arrays that would travel beside the pickle.
    pickler_type, select : None also for what makes `select` return anything of the pickler's list `reached`.

    >>> one, two = pickles(["a", np.zeros(10_000)], is_small=True)
    >>> pickle.loads(one), two
    ('a', None)
    """
    _restore_numpy()
    found, buffers, file = list[bytes | Exception | None](), list[memoryview](), io.BytesIO()
    pickler = pickler_type(file, protocol=5, buffer_callback=taking_large(buffers) if is_small else None)
    reached: list[Any] = pickler.reached if select is not None else []
    for value in values:
        reached.clear()
        try:
            pickler.dump(value)
            data = file.getvalue()
            is_alone = is_small and (buffers or len(data) > SMALL_BYTES)
            is_alone = is_alone or (select is not None and reached and select(reached))
            found.append(None if is_alone else data)
        except Exception as error:
            found.append(error)
        pickler.clear_memo()
        file.seek(0)
        file.truncate()
        buffers.clear()
    return found


def _restore_numpy() -> None:
    """f may have taken it away, and what it returned may be numpy's."""
    if sys.modules.get("numpy") is None:
        sys.modules["numpy"] = np


def taking_large(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """The callback of a pickler that appends those buffers that travel beside the pickle."""

    def goes_with_the_pickle(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BESIDE_BYTES:
            return True
        buffers.append(raw)
        return False

    return goes_with_the_pickle


def block_of_runs(runs: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The bytes of a block with these runs, the pickle first, piece by piece."""
    head = struct.pack(f"<{1 + len(runs)}q", len(runs), *map(len, runs))
    return [piece for run in (head, *runs) for piece in (run, bytes(-len(run) % ALIGNMENT))]


def from_block(block: Array) -> Any:
    """The value of which `to_block` made this; arrays in it lie in the block where that may be written."""
    (count,) = struct.unpack_from("<q", block.data)
    end, runs = 8 + 8 * count, []
    for length in struct.unpack_from(f"<{count}q", block.data, 8):
        start = end + -end % ALIGNMENT
        end = start + length
        runs.append(block[start:end])
    data, *buffers = runs
    return pickle.loads(data.data, buffers=map(_writable, buffers))


def loaded(data: bytes | str) -> Any:
    """The value of a block, of its bytes or its file, in which arrays stay until they are changed."""
    memory: Any = data
    if isinstance(data, str):
        check_private(os.path.dirname(os.path.dirname(data)))
        with open(data, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return from_block(np.frombuffer(memory, np.uint8))


def _writable(buffer: Array) -> Array:
    """A buffer that f may write into, and that compiled code finds aligned."""
    is_aligned = buffer.ctypes.data % np.dtype(np.longdouble).alignment == 0
    return buffer if buffer.flags.writeable and is_aligned else buffer.copy()
