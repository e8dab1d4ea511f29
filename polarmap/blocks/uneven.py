"""Parts of data as they are, for functions that no code commutes with: nothing is mixed or filled up."""

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
    """The flat parts of data and their structure.

    An array is cut along its first axis into `n_parts` nearly equal parts; a sequence holds the parts.
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
        raise CodeError(f"a part cannot be sent: {error}") from error
    structure = flattened[0][1]
    for part_index, (leaves, other_structure) in enumerate(flattened):
        if other_structure != structure:
            raise CodeError(f"part {part_index} differs from part 0 in structure")
        if any(leaf.dtype.hasobject for leaf in leaves):
            raise CodeError(f"part {part_index} holds Python objects: parts are made of arrays and numbers")
    return [leaves for leaves, _ in flattened], structure


def cut_data_into_items(data: Any, n_items: int | None, star: bool) -> list[Any]:
    """The values that f is called with: an array's nearly equal parts, or what a sequence or iterator gives.

    `star`: each is to be the arguments of a call.
    """
    if is_dataframe(data) and not star:
        return _cut_array_evenly(data, n_items)
    if is_dataframe(data):
        rows = "data.itertuples(index=False)" if hasattr(data, "iloc") else "data.iter_rows()"
        raise CodeError(f"star=True passes each item as several arguments, and data is a table: use {rows}")
    data = as_array_like(data)
    check_array_class_and_dtype(data)
    if isinstance(data, (str, bytes, bytearray)):
        raise CodeError(
            f"data is {describe_type(data)}, one value: use [data], or list(data) for one task a character"
        )
    if isinstance(data, dict):
        raise CodeError(
            "data is a dict: use list(data), list(data.values()), or list(data.items()) with star=True"
        )
    if is_array_like(data):
        if star:
            raise CodeError(
                "star=True passes each item as several arguments, and data is an array: "
                "use a sequence of tuples, as in list(zip(data, others))"
            )
        try:
            return _cut_array_evenly(data, n_items)
        except TypeError as error:
            raise CodeError(
                f"data is {describe_type(data)}, which has no rows to cut it along: {error}"
            ) from error
    if not isinstance(data, Iterable):
        raise CodeError(
            f"data must be an array, a sequence or an iterator, not {describe_type(data)}: use [data]"
        )
    items = list(data)
    if n_items is not None and n_items > len(items):
        raise CodeError(
            f"blocks={n_items}, but the sequence has {len(items)} items: use no more blocks than that"
        )
    for item_index, item in enumerate(items):
        if star and not isinstance(item, Iterable):
            raise CodeError(
                f"star=True takes tuples of arguments, and item {item_index} is {describe_type(item)}: "
                "use (item,)"
            )
    return items


def convert_items_to_blocks(
    items: Sequence[Any],
    referenced_objects: list[Any],
    batch_small_items: bool = False,
    pickle_arrays: bool = False,
) -> tuple[Sequence[Array | bytes], bool]:
    """Return each item as it is sent to workers, and whether the items are pickled.

    If all items are arrays, such as the parts of an array that was cut, they are sent as they are. All others
    are pickled, into an array as of `pickle_to_array` or into bytes.

    Parameters
    ----------
    items : sequence
    referenced_objects : list
        Gets the classes and functions of the user's modules that the items refer to, which f must bring
        along.
    batch_small_items : bool
        Whether items that are small become bytes, so that several may share a task.
    pickle_arrays : bool
        Whether to pickle items that are arrays too.
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
                f"item {item_index} of data, {describe_type(item)}, cannot be sent: "
                f"{type(error).__name__}: {error}; use what can be pickled, such as a path in "
                "place of an open file"
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
    """Return the bounds of `n_parts` nearly equal parts of a range.

    >>> list(split_range_evenly(5, 2))
    [(0, 2), (2, 5)]
    """
    return itertools.pairwise(length * i // n_parts for i in range(n_parts + 1))


class UncodedBlocks(TaskBlocks):
    """What each worker gets: one part of its own, of which these are the leaves."""

    def __init__(self, parts: Sequence[list[Array]], structure: Structure) -> None:
        self._parts, self.structure, self.n = parts, structure, len(parts)

    def component_leaves(self, component: int) -> list[Array]:
        """The leaves of a part."""
        return self._parts[component]


class GradientCodedBlocks(CodedData):
    """What each worker gets: its coefficients and its parts. Each part is stored once.

    Results are mixed, parts are not: as data blocks they hold nothing that a code asks for.
    """

    code: GradientCode

    def __init__(
        self, parts: list[list[Array]], structure: Structure, n_tasks: int | None, max_stragglers: int
    ) -> None:
        self._parts, self.n_parts = parts, len(parts)
        n = self.n_parts if n_tasks is None else n_tasks
        if self.n_parts % n:
            raise CodeError(f"tasks={n} does not divide the {self.n_parts} parts")
        code, self._parts_per_group = GradientCode(n, max_stragglers), self.n_parts // n
        part_structures = (structure,) * ((code.max_stragglers + 1) * self._parts_per_group)
        data_blocks = DataBlocks([[]] * self.n_parts, (tuple, (), (("array",), (list, (), part_structures))))
        super().__init__(code, data_blocks)

    def block_layout(self, task: int) -> Layout:
        """Dtype and shape of coefficients and parts."""
        return get_layout(self.block_leaves(task))

    def block_components(self, task: int) -> Sequence[int]:
        """Pieces below `n_parts` are the parts, the others the coefficients of the workers."""
        group_indices = np.flatnonzero(self.code.generator_matrix[task])
        parts = (group_indices[:, None] * self._parts_per_group + np.arange(self._parts_per_group)).ravel()
        return (self.n_parts + task, *parts.tolist())

    def component_leaves(self, component: int) -> list[Array]:
        """The leaves of a part, or a worker's coefficients."""
        if component < self.n_parts:
            return self._parts[component]
        row = self.code.generator_matrix[component - self.n_parts]
        row = np.repeat(row[row != 0], self._parts_per_group)
        return [row.astype(np.int64) if self.code.is_fractional_repetition else row]
