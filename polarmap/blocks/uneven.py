"""Cut data into parts or items that are not encoded, for maps of arbitrary functions.

Parts need not have equal shapes, and there is no padding. `hedged_map` sends items to workers, and
`coded_sum` sends each worker several parts, because it encodes the results instead of the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from polarmap.blocks.array_like import as_array_like, is_array_like, load_block_array
from polarmap.blocks.coded import CodedData
from polarmap.blocks.conversions import is_dataframe, slice_dataframe
from polarmap.blocks.equal import DEFAULT_N_BLOCKS, DataBlocks, check_array_class_and_dtype
from polarmap.codes.gradient_coding import GradientCode
from polarmap.dtypes import Array
from polarmap.errors import CodeError
from polarmap.executors.interface import TaskBlocks
from polarmap.executors.pickling import pickle_item_to_block, pickle_small_values
from polarmap.worker.pytree import Layout, Structure, describe_type, flatten, get_layout


def cut_data_into_parts(data: Any, n_parts: int | None) -> tuple[list[list[Array]], Structure]:
    """Cut data into parts. Return the arrays (leaves) of each part, and the structure of the parts.

    The structure describes how the arrays of a part are nested in tuples, lists and dicts. It is the same for
    all parts, but the shapes of the arrays may differ.

    Parameters
    ----------
    data : array or sequence
        An array is cut along its first axis into nearly equal parts. The items of a sequence are the parts.
    n_parts : int or None
        The number of parts of an array. None for at most DEFAULT_N_BLOCKS parts.

    Raises
    ------
    CodeError
        If the data cannot be cut, or if the parts differ in structure.
    """
    data = as_array_like(data)
    check_array_class_and_dtype(data)
    if is_array_like(data):
        data = _cut_array_evenly(data, n_parts)
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Sequence) or not len(data):
        raise CodeError(f"data must be an array or a sequence of at least one part, not {data!r:.60}")
    try:
        flattened = [flatten(part, load_block_array) for part in data]
    except TypeError as error:
        raise CodeError(f"a part cannot be sent to workers: {error}") from error
    structure = flattened[0][1]
    for part_index, (leaves, other_structure) in enumerate(flattened):
        if other_structure != structure:
            raise CodeError(
                f"all parts must have the same structure, but part {part_index} differs from part 0"
            )
        if any(leaf.dtype.hasobject for leaf in leaves):
            raise CodeError(
                f"part {part_index} contains Python objects: parts must consist of arrays and numbers"
            )
    return [leaves for leaves, _ in flattened], structure


def cut_data_into_items(data: Any, n_items: int | None, star: bool) -> list[Any]:
    """Return the list of items on which a map calls f.

    Parameters
    ----------
    data : array, table or iterable
        An array or table is cut along its first axis into nearly equal items. Other iterables yield the
        items.
    n_items : int or None
        The number of items of an array or table. None for at most DEFAULT_N_BLOCKS items.
    star : bool
        Whether each item is a tuple of arguments, for calls f(*item).

    Raises
    ------
    CodeError
        If the data does not have items, or if an item is not a tuple of arguments although `star` is True.
    """
    if is_dataframe(data) and not star:
        return _cut_array_evenly(data, n_items)
    if is_dataframe(data):
        rows = "data.itertuples(index=False)" if hasattr(data, "iloc") else "data.iter_rows()"
        raise CodeError(
            f"star=True unpacks each item into several arguments, but data is a table: use {rows}"
        )
    data = as_array_like(data)
    check_array_class_and_dtype(data)
    if isinstance(data, (str, bytes, bytearray)):
        raise CodeError(
            f"data is {describe_type(data)}, a single value: use [data], or list(data) for one task per "
            "character"
        )
    if isinstance(data, dict):
        raise CodeError(
            "data is a dict: use list(data), list(data.values()), or list(data.items()) with star=True"
        )
    if is_array_like(data):
        if star:
            raise CodeError(
                "star=True unpacks each item into several arguments, but data is an array: "
                "use a sequence of tuples, such as list(zip(data, other_data))"
            )
        try:
            return _cut_array_evenly(data, n_items)
        except TypeError as error:
            raise CodeError(
                f"data is {describe_type(data)}, which cannot be cut into rows: {error}"
            ) from error
    if not isinstance(data, Iterable):
        raise CodeError(
            f"data must be an array, a sequence or an iterator, not {describe_type(data)}: use [data]"
        )
    items = list(data)
    if n_items is not None and n_items > len(items):
        raise CodeError(
            f"blocks={n_items}, but the sequence has {len(items)} items: use blocks <= {len(items)}"
        )
    for item_index, item in enumerate(items):
        if star and not isinstance(item, Iterable):
            raise CodeError(
                f"star=True needs tuples of arguments, but item {item_index} is {describe_type(item)}: "
                "use (item,)"
            )
    return items


def convert_items_to_blocks(
    items: Sequence[Any],
    referenced_objects: list[Any],
    batch_small_items: bool = False,
    pickle_arrays: bool = False,
) -> tuple[Sequence[Array | bytes], bool]:
    """Convert the items of a map to blocks that can be sent to workers.

    Return the list of blocks, and whether they contain pickled items. If all items are arrays, they are the
    blocks themselves. Otherwise, each item is pickled, to a bytes object if it is small and to an array of
    bytes if it is large.

    Parameters
    ----------
    items : sequence
        The items of a map.
    referenced_objects : list
        A list to which the user's classes and functions that the items refer to are appended. They must be
        sent together with f.
    batch_small_items : bool
        Whether to pickle small items to bytes, so that several items can share a task.
    pickle_arrays : bool
        Whether to pickle the items even if all of them are arrays.
    """
    items = [np.asarray(item) if type(item) is np.memmap else item for item in items]
    if not pickle_arrays and all(type(item) is np.ndarray and not item.dtype.hasobject for item in items):
        return items, False
    small_pickles: Iterable[Any] = pickle_small_values(items) if batch_small_items else itertools.repeat(None)
    blocks = list[Array | bytes]()
    for item_index, (item, small_pickle) in enumerate(zip(items, small_pickles)):
        try:
            if isinstance(small_pickle, Exception):
                raise small_pickle
            is_small = small_pickle is not None
            blocks.append(small_pickle if is_small else pickle_item_to_block(item, referenced_objects))
        except Exception as error:
            raise CodeError(
                f"item {item_index} of data, {describe_type(item)}, cannot be sent to workers: "
                f"{type(error).__name__}: {error}. Pass objects that can be pickled, for example a path "
                "instead of an open file"
            ) from error
    return blocks, True


def _cut_array_evenly(data: Any, n_parts: int | None) -> list[Any]:
    n_rows = int(data.shape[0]) if len(data.shape) else 0
    n_parts = min(DEFAULT_N_BLOCKS, n_rows) if n_parts is None else n_parts
    if n_parts > n_rows or n_rows == 0:
        raise CodeError(f"an array of shape {tuple(data.shape)} cannot be cut into {max(n_parts, 1)} parts")
    row_ranges = split_range_evenly(n_rows, n_parts)
    return [
        slice_dataframe(data, start, stop) if is_dataframe(data) else data[start:stop]
        for start, stop in row_ranges
    ]


def split_range_evenly(length: int, n_parts: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds (start, stop) of `n_parts` nearly equal parts of range(length).

    >>> list(split_range_evenly(5, 2))
    [(0, 2), (2, 5)]
    """
    return itertools.pairwise(length * i // n_parts for i in range(n_parts + 1))


class UncodedBlocks(TaskBlocks):
    """The task inputs of a map without a code: one part of the data per task."""

    def __init__(self, parts: Sequence[list[Array]], structure: Structure) -> None:
        self._parts, self.structure, self.n = parts, structure, len(parts)

    def component_leaves(self, component: int) -> list[Array]:
        """Return the arrays (leaves) of part number `component` of the data."""
        return self._parts[component]


class GradientCodedBlocks(CodedData):
    """The inputs of the tasks of `coded_sum`: each task receives several parts of the data, and coefficients.

    In gradient coding, the parts are not encoded. Instead, each worker applies the function to its parts, and
    returns the sum of the results, weighted by the coefficients. A part is stored only once, even if several
    tasks receive it.

    Parameters
    ----------
    parts : list of lists of arrays
        The arrays (leaves) of each part.
    structure : Structure
        The structure of every part.
    n_tasks : int or None
        The number of tasks, which must divide the number of parts. None for one task per part.
    max_stragglers : int
        The number of results that may be missing.
    """

    code: GradientCode

    def __init__(
        self, parts: list[list[Array]], structure: Structure, n_tasks: int | None, max_stragglers: int
    ) -> None:
        self._parts, self.n_parts = parts, len(parts)
        n = self.n_parts if n_tasks is None else n_tasks
        if self.n_parts % n:
            raise CodeError(f"tasks must be a divisor of the number of parts ({self.n_parts}), not {n}")
        code, self._parts_per_group = GradientCode(n, max_stragglers), self.n_parts // n
        part_structures = (structure,) * ((code.max_stragglers + 1) * self._parts_per_group)
        data_blocks = DataBlocks([[]] * self.n_parts, (tuple, (), (("array",), (list, (), part_structures))))
        super().__init__(code, data_blocks)

    def block_layout(self, task: int) -> Layout:
        """Return the dtype and shape of each array that a task receives: its coefficients, then its parts."""
        return get_layout(self.block_leaves(task))

    def block_components(self, task: int) -> Sequence[int]:
        """Return the numbers of the components that a task receives: its coefficients, then its parts.

        Parts have the numbers 0 to n_parts - 1, and the coefficients of task i have the number n_parts + i.
        """
        group_indices = np.flatnonzero(self.code.generator_matrix[task])
        parts = (group_indices[:, None] * self._parts_per_group + np.arange(self._parts_per_group)).ravel()
        return (self.n_parts + task, *parts.tolist())

    def component_leaves(self, component: int) -> list[Array]:
        """Return the arrays of a component, which is either a part or the coefficients of a task."""
        if component < self.n_parts:
            return self._parts[component]
        row = self.code.generator_matrix[component - self.n_parts]
        row = np.repeat(row[row != 0], self._parts_per_group)
        return [row.astype(np.int64) if self.code.is_fractional_repetition else row]
