"""Parts of data as they are, for functions that no code commutes with: nothing is mixed or filled up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from polarmap.blocks.equal import check_labels_and_dtype
from polarmap.errors import CodeError
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Layout, Structure, flatten, layout_of

Array = npt.NDArray[Any]

DEFAULT_PARTS = 24


def cut_parts(data: Any, count: int | None) -> tuple[list[list[Array]], Structure]:
    """The flat parts of data and their structure.

    An array is cut along its first axis into `count` nearly equal parts; a sequence holds the parts.
    """
    check_labels_and_dtype(data)
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        data = _cut_array(data, count)
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Sequence) or not len(data):
        raise CodeError(f"data must be an array or a sequence of at least one part, not {data!r:.60}")
    try:
        flat = [flatten(part, data=True) for part in data]
    except TypeError as error:
        raise CodeError(f"a part cannot be sent: {error}") from error
    structure = flat[0][1]
    for index, (leaves, other) in enumerate(flat):
        if other != structure:
            raise CodeError(f"part {index} differs from part 0 in structure")
        if any(leaf.dtype.hasobject for leaf in leaves):
            raise CodeError(f"part {index} holds Python objects: parts are made of arrays and numbers")
    return [leaves for leaves, _ in flat], structure


def _cut_array(data: Any, count: int | None) -> list[Any]:
    rows = int(data.shape[0]) if len(data.shape) else 0
    count = min(DEFAULT_PARTS, rows) if count is None else count
    if count > rows or rows == 0:
        raise CodeError(f"an array of shape {tuple(data.shape)} cannot be cut into {max(count, 1)} parts")
    edges = [rows * turn // count for turn in range(count + 1)]
    return [data[low:high] for low, high in itertools.pairwise(edges)]


class PartBlocks:
    """What each worker gets: one part of its own."""

    source: Place | None = None

    def __init__(
        self, parts: Sequence[list[Array]], structure: Structure, workers: int | None = None
    ) -> None:
        self._parts, self.structure = parts, structure
        self.n = self.k = len(parts) if workers is None else workers

    def leaves(self, index: int) -> list[Array]:
        """The arrays that worker `index` gets."""
        return [leaf for number in self.pieces(index) for leaf in self.piece(number)]

    def layout(self, index: int) -> Layout:
        """Dtype and shape of each."""
        return layout_of(self.leaves(index))

    def release(self) -> None:
        """Nothing was made."""

    def parts(self, index: int) -> tuple[Part, ...]:
        """Nothing lies in storage."""
        raise LookupError(index)

    def pieces(self, index: int) -> Sequence[int]:
        """Of what a worker gets."""
        return (index,)

    def piece(self, number: int) -> list[Array]:
        """The leaves of a part."""
        return self._parts[number]
