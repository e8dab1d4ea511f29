"""Collect the received results of a coded map, and find those whose shape differs from the rest.

Decoding needs results of equal structure and shape. So results are grouped, and the largest group is used.
The other results count as failures of their tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.driver.task_table import TaskTable
from polarmap.dtypes import Array
from polarmap.executors.interface import Failure, FailureKind, Outcome, TaskResult
from polarmap.worker.pytree import Shape, Structure
from polarmap.worker.task_records import ResultRef

_get_dtype_kind, _get_shape = attrgetter("dtype.kind"), attrgetter("shape")


def get_comparable_types_and_shapes(leaves: Sequence[Array]) -> Any:
    """Return the dtype kinds and shapes of arrays, for comparison with other results.

    All signed and unsigned integers count as one kind.
    """
    return "".join(map(_get_dtype_kind, leaves)).replace("u", "i"), tuple(map(_get_shape, leaves))


def get_leaf_types(structure: Structure) -> list[str]:
    """Return the type of each leaf in a structure: "array", "numpy" or "python"."""
    if len(structure) < 3 or structure[0] == "sample":
        return [structure[0]]
    return [leaf_type for child in structure[2] for leaf_type in get_leaf_types(child)]


def has_valid_scalar_shapes(result: Outcome | TaskResult) -> bool:
    """Return whether each number in a result is stored as one value. If not, the result is damaged."""
    leaf_types = get_leaf_types(result.structure)
    return all(
        leaf.size == 1
        for leaf, leaf_type in zip(result.leaves, leaf_types)
        if leaf_type in ("python", "numpy")
    )


class Reception(Enum):
    """The effect of a received result on the set of results used for decoding."""

    IGNORED = "no change: a failure, too late, or rejected for its shape"
    ADDED = "the result has joined those that count"
    REGROUPED = "results of another structure or shape count from now on"
    UNPADDED_ONLY = "only the result of the rows of data counts, not that with padding"


class ReceivedResults:
    """The results of a coded map that have arrived, grouped by structure and shape.

    Only the largest group of results with equal structure and shape is used. Other results are recorded as
    failures of their tasks, unless their group becomes the largest one.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks, one per task.
    expected_shape : tuple of int or None
        The shape of the array in each result, or None if unknown before the map starts.
    task_table : TaskTable
        The tasks of the map, in which rejected results are recorded.

    Attributes
    ----------
    by_task : dict from int to Outcome
        The results that are used, by task.
    unpadded_result : TaskResult or None
        The result of the last block without its padding. None if it has not arrived or there is no padding.
    is_frozen : bool
        Whether the results have been accepted. After that, only `unpadded_result` may change.
    """

    def __init__(
        self, coded_data: CodedData, expected_shape: tuple[int, ...] | None, task_table: TaskTable
    ) -> None:
        self._coded_data, self._expected_shape, self._task_table = coded_data, expected_shape, task_table
        self._systematic_indices = coded_data.code.systematic_indices
        self._groups: dict[Any, dict[int, Outcome]] = {}  # (structure, types and shapes) -> results
        self.by_task: dict[int, Outcome] = {}
        self.unpadded_result: TaskResult | None = None
        self.is_frozen = False

    def add(self, outcome: Outcome) -> Reception:
        """Add the outcome of an attempt, and return how it affects the set of used results."""
        task_index = outcome.task
        if outcome.unpadded_result is not None and self.unpadded_result is None:
            if not has_valid_scalar_shapes(outcome.unpadded_result):
                # No function can return a number that consists of several values, so the result is damaged.
                self._reject_misshapen_result(task_index, "returned several numbers where one is due")
                return Reception.IGNORED
            self.unpadded_result = outcome.unpadded_result
        if outcome.failure is not None or task_index in self.by_task or self.is_frozen:
            return Reception.IGNORED
        # The mapped function raised an exception on the block with padding, but not without padding.
        if outcome.unpadded_result is not None and not outcome.structure:
            return Reception.UNPADDED_ONLY
        signature = repr(outcome.structure), get_comparable_types_and_shapes(outcome.leaves)
        if signature not in self._groups and not self._has_expected_shape(outcome):
            expected = "a number" if self._expected_shape is None else f"shape {self._expected_shape}"
            message = f"returned {outcome.result_description} where {expected} is due"
            self._reject_misshapen_result(task_index, message)
            return Reception.IGNORED
        # Remove an earlier result of this task with a different shape: the task may have been retried.
        for group in self._groups.values():
            group.pop(task_index, None)
        group = self._groups.setdefault(signature, {})
        group[task_index] = outcome
        if group is self.by_task:
            return Reception.ADDED
        if not self.by_task or self._outvotes_current_results(group):
            self._switch_to_group(group)
            return Reception.REGROUPED
        return self._reject_mismatched_result(outcome)

    def discard(self, task_index: int, failure: Failure) -> None:
        """Remove a task's result and record `failure` for the task."""
        del self.by_task[task_index]
        self._discard_unpadded_result(task_index)
        self._task_table.reject_result(task_index, failure)

    # -- what counts ------------------------------------------------------------------------

    @property
    def first_received(self) -> Outcome:
        """The earliest of the received results that are used for decoding."""
        return next(iter(self.by_task.values()))

    @property
    def structure(self) -> Structure:
        """The structure of a result: how its arrays (leaves) are nested in tuples, lists and dicts."""
        return self.by_task[min(self.by_task)].structure

    @property
    def leaf_shapes(self) -> list[Shape]:
        """The shapes of the arrays in a result, even if the results are in storage."""
        outcome = self.first_received
        if outcome.result_ref is None:
            return outcome.leaf_shapes
        return [shape for _, shape in outcome.result_ref.layout]

    @property
    def result_refs(self) -> dict[int, ResultRef]:
        """References to the results that workers have written to storage, by task.

        These workers have returned only samples of their results.
        """
        outcomes = self.by_task.items()
        return {task: outcome.result_ref for task, outcome in outcomes if outcome.result_ref is not None}

    def get_flat_leaves_by_task(self, leaf_index: int) -> dict[int, Array]:
        """Return the array at `leaf_index` in each used result, flattened to one dimension, by task."""
        return {task: outcome.leaves[leaf_index].reshape(-1) for task, outcome in self.by_task.items()}

    @property
    def n_data_results(self) -> int:
        """The number of data blocks whose results are used."""
        return sum(int(block_index) in self.by_task for block_index in self._systematic_indices)

    @property
    def n_arrived_tasks(self) -> int:
        """The number of tasks with a valid result, with or without padding."""
        return len(self._task_table.arrived)

    @property
    def mismatched_blocks(self) -> set[int]:
        """The data blocks for which a worker returned a result with the wrong structure or shape."""
        n_data_tasks = len(self._systematic_indices)
        return {
            task
            for task in self._task_table.tasks_with_failures
            if task < n_data_tasks
            and any(failure.kind == FailureKind.SHAPE for failure in self._task_table[task].failures)
        }

    def has_all_data_results(self, task_indices: Collection[int]) -> bool:
        """Return whether these tasks provide the results of all data blocks.

        For the padded block, a received result without padding is enough.
        """
        available, n_data_tasks = set(task_indices), len(self._systematic_indices)
        if self.unpadded_result is not None:
            available.add(n_data_tasks - 1)
        return n_data_tasks > 0 and available.issuperset(self._systematic_indices)

    @property
    def has_finite_values(self) -> bool:
        """Whether all values in the used results are finite."""
        leaves = (leaf for outcome in self.by_task.values() for leaf in outcome.leaves)
        return all(leaf.dtype.kind not in "fc" or bool(np.isfinite(leaf).all()) for leaf in leaves)

    def iterate_usable_task_sets(self, pending_tasks: Collection[int]) -> Iterator[set[int]]:
        """Yield the tasks of each group of equally shaped results, together with the pending tasks.

        Each set contains the tasks whose results could be used for decoding if all pending tasks returned
        results of the shape of that group.
        """
        for group in self._groups.values() or [{}]:
            yield {*pending_tasks, *group}

    # -- results of another structure or shape ----------------------------------------------

    def _has_expected_shape(self, outcome: Outcome) -> bool:
        return has_valid_scalar_shapes(outcome) and self._expected_shape in (None, *outcome.leaf_shapes)

    def _outvotes_current_results(self, candidates: dict[int, Outcome]) -> bool:
        """Return whether the results in `candidates` should be used instead of the current ones.

        Each group contains results of equal structure and shape, and the larger group is used. If both are
        equally large, or differ only in dtype, a group with results of data blocks takes precedence. The
        dtypes may differ because parity blocks contain wider integers.
        """
        candidate, current = next(iter(candidates.values())), self.first_received
        has_data, had_data = (
            min(results) < len(self._systematic_indices) for results in (candidates, self.by_task)
        )
        has_same_shapes = (
            candidate.structure == current.structure and candidate.leaf_shapes == current.leaf_shapes
        )
        if has_data != had_data and (has_same_shapes or len(candidates) == len(self.by_task)):
            return has_data
        return len(candidates) > len(self.by_task)

    def _switch_to_group(self, candidates: dict[int, Outcome]) -> None:
        """Replace the used results with the group `candidates`.

        Replaced results become failures of their tasks.
        """
        rejected, self.by_task = self.by_task, candidates
        for task_index in candidates:
            self._task_table.restore_result(task_index)
        for outcome in rejected.values():
            self._reject_mismatched_result(outcome)

    def _reject_mismatched_result(self, outcome: Outcome) -> Reception:
        """Record a result of a different shape as a failure, unless padding may explain the shape."""
        if outcome.unpadded_result is not None and self.unpadded_result is not None:
            return Reception.UNPADDED_ONLY
        expected = self.first_received
        results_text = f"{outcome.result_description} here, {expected.result_description} in other tasks"
        message = (
            f"f returned blocks of different shapes ({results_text}), so lost results cannot be decoded. Use "
            "hedged_map for an f that filters its data"
        )
        if outcome.task >= len(self._systematic_indices) and outcome.leaf_shapes == expected.leaf_shapes:
            layout = self._coded_data.block_layout
            data_dtype, parity_dtype = (layout(index)[0][0] for index in (0, self._coded_data.n - 1))
            message = (
                f"f returned blocks of different dtypes ({results_text}): parity of {np.dtype(data_dtype)} "
                f"data is {np.dtype(parity_dtype)}, for which f returns another dtype. Cast in f, or convert "
                "the data, or what f combines it with, so that both dtypes are the same"
            )
        self._reject_misshapen_result(outcome.task, message)
        return Reception.IGNORED

    def _reject_misshapen_result(self, task_index: int, message: str) -> None:
        """Record that a task failed because its result has the wrong shape."""
        self._discard_unpadded_result(task_index)
        self._task_table.reject_result(task_index, Failure(FailureKind.SHAPE, "WrongShape", message))

    def _discard_unpadded_result(self, task_index: int) -> None:
        """Discard the result without padding if it comes from this task, because its result is rejected."""
        padded_block = self._coded_data.data_blocks.padded_block
        if padded_block is not None and task_index == padded_block[0]:
            self.unpadded_result = None
