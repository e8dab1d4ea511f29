"""Flatten trees of arrays (pytrees) into leaves and a structure, and serialize them as raw bytes.

A pytree (a term from JAX) is an array or number, or nested tuples, lists and dicts of these. The user's
function f receives and returns trees, and codes are applied to their leaves:

    {"a": 1.5, "b": (x, y)}  -- flatten -->  leaves 1.5, x, y and structure (dict, ("a", "b"), ...)
                             -- pack_tree -->  structure, dtype and shape of each leaf, and their bytes

This module also runs on workers, so it imports at most numpy.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
# The dtype and shape of each of several arrays. A dtype is given as a string such as "<f8", unless it has
# fields.
Layout = tuple[tuple[Any, Shape], ...]
# The structure of a tree (nested tuples, lists and dicts) without its data, as plain tuples that can always
# be pickled. A container is represented by (class, keys, structures of its children). A leaf is represented
# by (type,), where the type is "array", "matrix", "numpy" (a numpy scalar) or "python" (a number or string).
Structure = tuple[Any, ...]

# If a task sends two results together, their common structure is the tuple (BOTH_RESULTS, number of leaves of
# the first result, structure of the first result, structure of the second result).
BOTH_RESULTS = "both"
PYTHON_SCALAR_TYPES = (bool, int, float, complex, str, bytes)
CONVERSION_ADVICE = {
    "to_numpy": "use its .to_numpy()",
    "toarray": "use its .toarray()",
    "__array__": "use numpy.asarray(...) of it",
    "keys": "use dict(...) of it",
    "__iter__": "use list(...) of it, or a numpy array",
}


class PackedTree(NamedTuple):
    """A serialized tree: the bytes of its arrays, and the metadata needed to rebuild it.

    Attributes
    ----------
    structure : tuple
        How the arrays are nested, as `flatten` returns it.
    layout : tuple
        The dtype and shape of each array.
    data : bytes, bytearray or memoryview
        The bytes of the arrays, one after the other.
    """

    structure: Structure
    layout: Layout
    data: bytes | bytearray | memoryview


def unpack_leaves(layout: Layout, data: bytes | bytearray | memoryview, writable: bool = True) -> list[Array]:
    """Return the arrays whose bytes are concatenated in `data`.

    Parameters
    ----------
    layout : tuple
        The dtype and shape of each array.
    data : bytes, bytearray or memoryview
        The bytes of the arrays. The returned arrays share this memory.
    writable : bool
        Whether the arrays must be writable. If `data` is read-only, they are then copied.

    Raises
    ------
    ValueError
        If the size of `data` does not match the layout.
    """
    leaves, start = [], 0
    for dtype_spec, shape in layout:
        dtype = np.dtype(dtype_spec)
        end = start + dtype.itemsize * math.prod(shape)
        if end > len(data):
            raise ValueError(f"a result has {len(data)} bytes, not {end} or more")
        if dtype.itemsize:
            leaf = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        else:
            leaf = np.empty(shape, dtype)
        leaves.append(leaf.copy() if writable and not leaf.flags.writeable else leaf)
        start = end
    if start != len(data):
        raise ValueError(f"a result has {len(data)} bytes, not {start}")
    return leaves


def flatten(tree: Any, read_leaf: Callable[[Any], Any] | None = None) -> tuple[list[Array], Structure]:
    """Split a tree (nested tuples, lists and dicts) into its leaves and its structure.

    Return the leaves as a list of arrays, from left to right, and the structure. `unflatten` is the inverse.

    Parameters
    ----------
    tree : object
        A result of f, or a block if `read_leaf` is given.
    read_leaf : callable, optional
        Called with each leaf; returns an array or scalar to use in its place, for example to convert a table.

    Raises
    ------
    TypeError
        If the tree contains an object that `unflatten` could not restore.

    Examples
    --------
    >>> leaves, structure = flatten({"a": 1.5, "b": (np.zeros(2), np.ones(1))})
    >>> [leaf.tolist() for leaf in leaves]
    [1.5, [0.0, 0.0], [1.0]]
    >>> unflatten(structure, leaves)["a"]
    1.5
    """
    leaves: list[Array] = []
    try:
        error_prefix = "f returned" if read_leaf is None else "it holds"
        return leaves, _flatten_into(tree, leaves, error_prefix, read_leaf)
    except RecursionError:
        raise TypeError("lists, tuples or dicts are nested without end, or nearly so") from None


def _flatten_into(
    tree: Any, leaves: list[Array], error_prefix: str, read_leaf: Callable[[Any], Any] | None
) -> Structure:
    """Append the leaves of a tree to the list `leaves`, and return the structure of the tree.

    Raises TypeError with a message that begins with `error_prefix` if a type is not supported.
    """
    if isinstance(tree, (dict, tuple, list)):
        _check_container(tree, error_prefix)
        children = tree.values() if isinstance(tree, dict) else tree
        child_prefix = f"{error_prefix} {describe_type(tree)} with"
        keys = tuple(tree) if isinstance(tree, dict) else ()
        structures = tuple(_flatten_into(child, leaves, child_prefix, read_leaf) for child in children)
        return type(tree), keys, structures
    tree = tree if read_leaf is None else read_leaf(tree)
    leaf_type = _get_leaf_type(tree, error_prefix)
    leaves.append(_leaf_to_array(tree))
    return (leaf_type,)


def _check_container(tree: Any, error_prefix: str) -> None:
    """Raise TypeError if a container cannot be rebuilt from its items, as is the case for many subclasses."""
    container_class = type(tree)
    # The attribute `_make` identifies a named tuple.
    if container_class in (dict, tuple, list, OrderedDict) or hasattr(container_class, "_make"):
        return
    base_class = next(base for base in (dict, tuple, list) if isinstance(tree, base))
    if (
        container_class.__init__ is base_class.__init__
        and container_class.__new__ is base_class.__new__
        and not getattr(tree, "__dict__", 0)
    ):
        return
    raise TypeError(f"{error_prefix} {describe_type(tree)}: use {base_class.__name__}(...) of it")


def is_masked_array(value: Any) -> bool:
    """Return whether a value is a numpy masked array.

    This avoids importing `numpy.ma`, which is slow.
    """
    numpy_ma = sys.modules.get("numpy.ma")
    return numpy_ma is not None and isinstance(value, numpy_ma.MaskedArray)


def _get_leaf_type(leaf: Any, error_prefix: str) -> str:
    """Return the type of a leaf: "array", "matrix", "numpy" (a scalar) or "python" (a number or string).

    Raises TypeError with a message that begins with `error_prefix` if the leaf is not supported.
    """
    if type(leaf) is np.ndarray:
        return "array"
    if is_masked_array(leaf):
        raise TypeError(f"{error_prefix} a masked array, whose mask would be lost: use .filled()")
    if isinstance(leaf, np.matrix):
        return "matrix"
    if isinstance(leaf, np.generic):
        return "numpy"
    if type(leaf) in PYTHON_SCALAR_TYPES:
        if type(leaf) is int and not -(2**63) <= leaf < 2**64:
            n_bits = leaf.bit_length()
            raise TypeError(f"{error_prefix} an integer of {n_bits} bits, numpy's have 64: use float(...)")
        return "python"
    if type(leaf) is np.memmap:
        return "array"
    raise TypeError(f"{error_prefix} {describe_type(leaf)}: {_get_conversion_advice(leaf)}")


def describe_type(value: Any) -> str:
    """Return the name of a value's type with an article, for error messages: "a list", "an int"."""
    if value is None:
        return "None"
    value_class = type(value)
    name = value_class.__qualname__
    if value_class.__module__ != "builtins":
        name = f"{value_class.__module__}.{name}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _get_conversion_advice(value: Any) -> str:
    """Return advice for an error message on how to convert a value to a supported type."""
    for attribute, advice in CONVERSION_ADVICE.items():
        if hasattr(value, attribute):
            return advice
    return "use arrays, numbers, or tuples, lists and dicts of these"


def _leaf_to_array(leaf: Any) -> Array:
    """Convert a leaf of a tree (an array, number or string) to an array.

    An empty string becomes an array of length 0, because numpy would convert it to a string of length 1.
    """
    if type(leaf) in (str, bytes) and not leaf:
        return np.empty(0, "U1" if isinstance(leaf, str) else "S1")
    return np.asarray(leaf)


def unflatten(structure: Structure, leaves: Sequence[Array]) -> Any:
    """Rebuild a tree of arrays from its structure and its leaves. This is the inverse of `flatten`."""
    if len(structure) == 1:
        return _restore_leaf(structure[0], leaves[0])
    return _rebuild_tree(structure, iter(leaves))


def _rebuild_tree(structure: Structure, remaining_leaves: Iterator[Array]) -> Any:
    """Rebuild a tree from its structure and the next leaves of an iterator."""
    # This is not nested in `unflatten`, because a nested recursive function is a reference cycle, which would
    # keep the leaves in memory until the next garbage collection.
    if len(structure) == 1:
        return _restore_leaf(structure[0], next(remaining_leaves))
    container_class, keys, child_structures = structure
    children = [_rebuild_tree(child_structure, remaining_leaves) for child_structure in child_structures]
    if issubclass(container_class, dict):
        return container_class(zip(keys, children))
    return container_class._make(children) if hasattr(container_class, "_make") else container_class(children)


def _restore_leaf(leaf_type: str, leaf: Array) -> Any:
    if leaf_type == "array":
        return leaf
    if leaf_type == "matrix":
        return leaf.view(np.matrix)
    if leaf_type == "numpy":
        return leaf[()]
    if leaf.dtype.kind == "S":  # leaf.item() would strip zero bytes at the end of a string.
        return leaf.tobytes()
    if leaf.dtype.kind == "U":
        return leaf.astype(leaf.dtype.newbyteorder("<")).tobytes().decode("utf-32-le", "surrogatepass")
    return leaf.item()


def pack_tree(tree: Any) -> PackedTree:
    """Serialize a tree (nested tuples, lists and dicts) as the bytes of its arrays, structure and layout.

    If `tree` is already a PackedTree, it is returned unchanged.

    >>> pack_tree((1, np.arange(3, dtype="i2"))).layout
    (('<i8', ()), ('<i2', (3,)))
    """
    # Compare names instead of classes, because a function that was pickled by value has its own copy of the
    # class PackedTree.
    if (type(tree).__module__, type(tree).__name__) == (PackedTree.__module__, PackedTree.__name__):
        return PackedTree(*tree)
    leaves, structure = flatten(tree)
    return pack_leaves(leaves, structure)


def pack_leaves(leaves: Sequence[Array], structure: Structure) -> PackedTree:
    """Serialize a tree that `flatten` has split into its leaves and its structure.

    Raises TypeError if a leaf is an array of Python objects.
    """
    for leaf in leaves:
        if leaf.dtype.hasobject:
            raise TypeError(f"a leaf has dtype {leaf.dtype}: it must be an array of numbers or a number")
    return PackedTree(structure, get_layout(leaves), b"".join([leaf.tobytes() for leaf in leaves]))


def get_layout(leaves: Sequence[Array]) -> Layout:
    """Return the dtype and shape of each array.

    A dtype is returned as a string such as "<f8", unless it has fields.
    """
    return tuple([(_get_dtype_spec(leaf.dtype), leaf.shape) for leaf in leaves])


def count_layout_bytes(layout: Layout) -> int:
    """Return the total size of arrays with these dtypes and shapes, in bytes."""
    return sum(np.dtype(dtype_spec).itemsize * math.prod(shape) for dtype_spec, shape in layout)


def _get_dtype_spec(dtype: np.dtype[Any]) -> str | np.dtype[Any]:
    return dtype.str if np.dtype(dtype.str) == dtype else dtype
