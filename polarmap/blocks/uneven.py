"""Parts of data as they are, for functions that no code commutes with: nothing is mixed or filled up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from polarmap.blocks.array_like import as_array_like, is_array, read_leaf
from polarmap.blocks.coded import CodedData
from polarmap.blocks.conversions import frame_rows, is_frame
from polarmap.blocks.equal import DEFAULT_BLOCKS, Blocks, check_class_and_dtype
from polarmap.codes.gradient_coding import GradientCode
from polarmap.dtypes import Array
from polarmap.errors import CodeError
from polarmap.executors.base import Coded
from polarmap.executors.pickling import block_of_item, pickles_of
from polarmap.worker.pytree import Layout, Structure, flatten, layout_of, naming


def cut_parts(data: Any, count: int | None) -> tuple[list[list[Array]], Structure]:
    """The flat parts of data and their structure.

    An array is cut along its first axis into `count` nearly equal parts; a sequence holds the parts.
    """
    data = as_array_like(data)
    check_class_and_dtype(data)
    if is_array(data):
        data = _cut_array(data, count)
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Sequence) or not len(data):
        raise CodeError(f"data must be an array or a sequence of at least one part, not {data!r:.60}")
    try:
        flat = [flatten(part, read_leaf) for part in data]
    except TypeError as error:
        raise CodeError(f"a part cannot be sent: {error}") from error
    structure = flat[0][1]
    for index, (leaves, other) in enumerate(flat):
        if other != structure:
            raise CodeError(f"part {index} differs from part 0 in structure")
        if any(leaf.dtype.hasobject for leaf in leaves):
            raise CodeError(f"part {index} holds Python objects: parts are made of arrays and numbers")
    return [leaves for leaves, _ in flat], structure


def cut_items(data: Any, count: int | None, star: bool) -> list[Any]:
    """The values that f is called with: an array's nearly equal parts, or what a sequence or iterator gives.

    `star`: each is to be the arguments of a call.
    """
    if is_frame(data) and not star:
        return _cut_array(data, count)
    if is_frame(data):
        rows = "data.itertuples(index=False)" if hasattr(data, "iloc") else "data.iter_rows()"
        raise CodeError(f"star=True passes each item as several arguments, and data is a table: use {rows}")
    data = as_array_like(data)
    check_class_and_dtype(data)
    if isinstance(data, (str, bytes, bytearray)):
        raise CodeError(
            f"data is {naming(data)}, one value: use [data], or list(data) for one task a character"
        )
    if isinstance(data, dict):
        raise CodeError(
            "data is a dict: use list(data), list(data.values()), or list(data.items()) with star=True"
        )
    if is_array(data):
        if star:
            raise CodeError(
                "star=True passes each item as several arguments, and data is an array: "
                "use a sequence of tuples, as in list(zip(data, others))"
            )
        try:
            return _cut_array(data, count)
        except TypeError as error:
            raise CodeError(f"data is {naming(data)}, which has no rows to cut it along: {error}") from error
    if not isinstance(data, Iterable):
        raise CodeError(f"data must be an array, a sequence or an iterator, not {naming(data)}: use [data]")
    items = list(data)
    if count is not None and count > len(items):
        raise CodeError(
            f"blocks={count}, but the sequence has {len(items)} items: use no more blocks than that"
        )
    for index, item in enumerate(items):
        if star and not isinstance(item, Iterable):
            raise CodeError(
                f"star=True takes tuples of arguments, and item {index} is {naming(item)}: use (item,)"
            )
    return items


def neighbours(items: Sequence[Any], count: int) -> list[list[Any]]:
    """Items in so many nearly equal lists.

    >>> neighbours("abcde", 2)
    [['a', 'b'], ['c', 'd', 'e']]
    """
    return [list(items[low:high]) for low, high in _ranges(len(items), count)]


def any_parts(
    items: Sequence[Any], reached: list[Any], name: str = "item", together: bool = False
) -> tuple[Sequence[Any], bool]:
    """What stands for each of these values: an array, and whether `to_block` made it.

    Arrays stand for themselves, where all are, as those that an array was cut into: nothing is copied.

    reached : gets the classes and functions of the caller's modules that the values are made of. f is to
        bring them along.
    together : whether what is small may travel with others, and is a pickle.
    """
    items = [np.asarray(item) if type(item) is np.memmap else item for item in items]
    if all(type(item) is np.ndarray and not item.dtype.hasobject for item in items):
        return items, False
    parts = list[Array | bytes]()
    for index, (item, small) in enumerate(
        zip(items, pickles_of(items) if together else itertools.repeat(None))
    ):
        try:
            if isinstance(small, Exception):
                raise small
            parts.append(block_of_item(item, reached) if small is None else small)
        except Exception as error:
            raise CodeError(
                f"{name} {index} of data, {naming(item)}, cannot be sent: {type(error).__name__}: {error}; "
                "use what can be pickled, such as a path in place of an open file"
            ) from error
    return parts, True


def _cut_array(data: Any, count: int | None) -> list[Any]:
    rows = int(data.shape[0]) if len(data.shape) else 0
    count = min(DEFAULT_BLOCKS, rows) if count is None else count
    if count > rows or rows == 0:
        raise CodeError(f"an array of shape {tuple(data.shape)} cannot be cut into {max(count, 1)} parts")
    cut = _ranges(rows, count)
    return [frame_rows(data, low, high) if is_frame(data) else data[low:high] for low, high in cut]


def _ranges(length: int, count: int) -> Iterator[tuple[int, int]]:
    """The bounds of `count` nearly equal parts."""
    return itertools.pairwise(length * turn // count for turn in range(count + 1))


class PartBlocks(Coded):
    """What each worker gets: one part of its own, of which these are the leaves."""

    def __init__(self, parts: Sequence[list[Array]], structure: Structure) -> None:
        self._parts, self.structure, self.n = parts, structure, len(parts)

    def piece(self, number: int) -> list[Array]:
        """The leaves of a part."""
        return self._parts[number]


class SharedParts(CodedData):
    """What each worker gets: its coefficients and its parts. Each part is stored once.

    Results are mixed, parts are not: as data blocks they hold nothing that a code asks for.
    """

    code: GradientCode

    def __init__(
        self, parts: list[list[Array]], structure: Structure, tasks: int | None, tolerate: int
    ) -> None:
        self._parts, self.count = parts, len(parts)
        n = self.count if tasks is None else tasks
        if self.count % n:
            raise CodeError(f"tasks={n} does not divide the {self.count} parts")
        code, self._each = GradientCode(n, tolerate), self.count // n
        kinds = (structure,) * ((code.max_stragglers + 1) * self._each)
        unmixed = Blocks([[]] * self.count, (tuple, (), (("array",), (list, (), kinds))))
        super().__init__(code, unmixed)

    def layout(self, index: int) -> Layout:
        """Dtype and shape of coefficients and parts."""
        return layout_of(self.leaves(index))

    def pieces(self, index: int) -> Sequence[int]:
        """Pieces below `count` are the parts, the others the coefficients of the workers."""
        values = np.flatnonzero(self.code.generator_matrix[index])
        parts = (values[:, None] * self._each + np.arange(self._each)).ravel()
        return (self.count + index, *parts.tolist())

    def piece(self, number: int) -> list[Array]:
        """The leaves of a part, or a worker's coefficients."""
        if number < self.count:
            return self._parts[number]
        row = self.code.generator_matrix[number - self.count]
        row = np.repeat(row[row != 0], self._each)
        return [row.astype(np.int64) if self.code.is_fractional_repetition else row]
