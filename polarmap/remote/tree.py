"""Nested tuples, lists and dicts of arrays <-> flat lists of arrays and raw bytes.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


# (kind,) for a leaf, kind being what it was: "array", "numpy" scalar or "python" number;
# (type, keys, children) for a container. Plain tuples, so that any pickle carries them.
Structure = tuple[Any, ...]


class Packed(NamedTuple):
    """A tree as one run of bytes plus what it takes to read them; never a pickled array."""

    structure: Structure
    layout: tuple[tuple[str, Shape], ...]  # dtype and shape of each leaf
    data: bytes | bytearray | memoryview

    def unpack(self) -> list[Array]:
        """The leaves, as writable arrays."""
        return [leaf if leaf.flags.writeable else leaf.copy() for leaf in self.views()]

    def views(self) -> list[Array]:
        """The leaves where they lie, writable or not."""
        leaves, offset = [], 0
        for name, shape in self.layout:
            dtype = np.dtype(name)
            count = int(np.prod(shape, dtype=np.int64))
            leaves.append(np.frombuffer(self.data, dtype, count, offset).reshape(shape))
            offset += count * dtype.itemsize
        return leaves


def flatten(tree: Any) -> tuple[list[Array], Structure]:
    """The leaves of a tree, left to right, and its structure.

    >>> leaves, structure = flatten({"a": 1.5, "b": (np.zeros(2), np.ones(1))})
    >>> [leaf.tolist() for leaf in leaves]
    [1.5, [0.0, 0.0], [1.0]]
    >>> unflatten(structure, leaves)["a"]
    1.5
    """
    node: Structure
    if isinstance(tree, dict):
        flat = [flatten(child) for child in tree.values()]
        node = (type(tree), tuple(tree), tuple(structure for _, structure in flat))
    elif isinstance(tree, (tuple, list)):
        flat = [flatten(child) for child in tree]
        node = (type(tree), (), tuple(structure for _, structure in flat))
    elif isinstance(tree, np.ma.MaskedArray):
        raise TypeError("a leaf is a masked array, whose mask would be lost: use .filled()")
    else:
        kind = "array" if hasattr(tree, "ndim") else "python"
        return [np.asarray(tree)], ("numpy" if isinstance(tree, np.generic) else kind,)
    return [leaf for leaves, _ in flat for leaf in leaves], node


def unflatten(structure: Structure, leaves: Sequence[Array]) -> Any:
    """The tree with this structure and these leaves."""
    remaining = iter(leaves)

    def build(part: Structure) -> Any:
        if len(part) == 1:
            leaf = next(remaining)
            if part[0] == "array":
                return leaf
            return leaf.item() if part[0] == "python" else leaf[()]
        kind, keys, parts = part
        children = [build(child) for child in parts]
        if issubclass(kind, dict):
            return dict(zip(keys, children))
        return kind(*children) if hasattr(kind, "_fields") else kind(children)

    return build(structure)


def pack(tree: Any) -> Packed:
    """A tree as raw bytes.

    >>> pack((1, np.arange(3, dtype="i2"))).layout
    (('<i8', ()), ('<i2', (3,)))
    """
    leaves, structure = flatten(tree)
    return pack_leaves(leaves, structure)


def pack_leaves(leaves: Sequence[Array], structure: Structure) -> Packed:
    """`pack` of a tree that is already flat."""
    layout = tuple((leaf.dtype.str, leaf.shape) for leaf in leaves)
    for leaf in leaves:
        if leaf.dtype.hasobject:
            raise TypeError(
                f"a leaf has dtype {leaf.dtype}: it must be an array of numbers or a number, "
                "not None, a sparse matrix or another object"
            )
    return Packed(structure, layout, b"".join(leaf.tobytes() for leaf in leaves))
