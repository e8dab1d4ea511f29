"""The results of a map: those of one shape, and the decoder that they feed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes.arrival_tracker import ArrivalTracker, DecodingState
from polarmap.codes.base import ErasureDecoder
from polarmap.codes.compute.tiling import ignore_nonfinite_warnings
from polarmap.driver.collector import Collector, JobTimer
from polarmap.driver.function_properties import FunctionProperty
from polarmap.driver.local_evaluation import LocalEvaluation, copy_block
from polarmap.driver.options import MapOptions
from polarmap.driver.task_table import TaskTable
from polarmap.driver.wraparound import find_wraparound_reason, undo_wraparound
from polarmap.dtypes import (
    Array,
    DType,
    check_supported_dtype,
    get_default_rtol,
    is_integer_dtype,
    machine_epsilon,
)
from polarmap.errors import CodeError
from polarmap.executors.interface import Failure, Outcome, TaskResult
from polarmap.worker.pytree import Structure

# The longest wait for a result that is not needed, or for f on the driver:
BASE_WAIT_SECONDS = 20.0
WAIT_TASK_FACTOR = 4.0  # times the longest task, if that is more
# bounds of the wait for a result to check against: then f is evaluated here
REDUNDANCY_WAIT_BOUNDS = (0.2, 10.0)


_get_dtype_kind, _get_shape = attrgetter("dtype.kind"), attrgetter("shape")  # of an array


def get_comparable_types_and_shapes(leaves: Sequence[Array]) -> Any:
    """What must agree between the arrays of results: any integer goes with any other."""
    return "".join(map(_get_dtype_kind, leaves)).replace("u", "i"), tuple(map(_get_shape, leaves))


def get_leaf_types(structure: Structure) -> list[str]:
    """What each leaf of a tree of this structure was: "array", "numpy" or "python"."""
    if len(structure) < 3 or structure[0] == "sample":
        return [structure[0]]
    return [leaf_type for child in structure[2] for leaf_type in get_leaf_types(child)]


def has_valid_scalar_shapes(result: Outcome | TaskResult) -> bool:
    """Whether numbers are single ones: what says otherwise has not come from f."""
    leaf_types = get_leaf_types(result.structure)
    return all(
        leaf.size == 1
        for leaf, leaf_type in zip(result.leaves, leaf_types)
        if leaf_type in ("python", "numpy")
    )


class NonFiniteResultError(Exception):
    """NaN or inf among the results: parity carries it into every block that is decoded."""


class DecodingCollector(Collector):
    """The results of a map so far, and whether they determine those of the data blocks.

    Attributes
    ----------
    results : dict from task to Outcome
        Of the most common structure and shape; others are failures of their tasks.
    tracker : ArrivalTracker
        From the first result on, which tells the dtypes.
    decodable_at, ready_at : float or None
        When the results first determined the rest, and as accurately as is asked for, in seconds after
        the start.
    n_needed : int
        How many they were.
    is_ill_conditioned : bool
        Whether they are taken although more would have to come for the accuracy asked for.
    verification : str or None
        How the results were verified, once they are accepted: they stay as they are then.
    unpadded_result : TaskResult or None
        That of the block which rows of zeros fill up, evaluated without these, once its task returned it.
    decoded_results : list of lists of arrays
        The results of the k data tasks, flat; of the last time they were decoded, empty before.
    decode_seconds : float
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        coded_data: CodedData,
        options: MapOptions,
        task_table: TaskTable,
        timer: JobTimer,
    ) -> None:
        super().__init__(task_table, timer)
        self.f, self.coded_data, self._code, self.options = f, coded_data, coded_data.code, options
        self.evaluated_locally: list[int] = []  # coded blocks, once for each time that f ran on the driver
        holds_by_construction = options.traits.meets_requirement or options.verify is False  # nobody asks
        self.function_property = FunctionProperty(
            f, coded_data.code.requirement, coded_data.data_blocks.dtypes, holds_by_construction
        )
        self._local_sample: list[Array] | None = None  # f of a data block, evaluated here
        self._results_by_signature: dict[Any, dict[int, Outcome]] = {}  # by kind
        self.results: dict[int, Outcome] = {}
        self.unpadded_result: TaskResult | None = None
        self.tracker: ArrivalTracker
        self.decodable_at: float | None = None
        self.ready_at: float | None = None
        self.n_needed = 0
        self.is_ill_conditioned = False
        self.verification: str | None = None
        self.decoded_results: list[list[Array]] = []
        self.decode_seconds = 0.0
        self._decoder: ErasureDecoder | None = None

    def add_outcome(self, outcome: Outcome) -> None:
        """Take in a result, unless others are accepted; failures are in the table of tasks."""
        task_index = outcome.task
        if outcome.unpadded_result is not None and self.unpadded_result is None:
            if not has_valid_scalar_shapes(outcome.unpadded_result):  # it cannot have come from f
                self._reject_misshapen_result(task_index, "returned several numbers where one is due")
                return
            self.unpadded_result = outcome.unpadded_result
        if outcome.failure is not None or task_index in self.results or self.verification is not None:
            return
        # f raised an exception of rows of zeros
        if outcome.unpadded_result is not None and not outcome.structure:
            self._record_all_data_arrived()
            return
        signature = repr(outcome.structure), get_comparable_types_and_shapes(outcome.leaves)
        expected_shape = self.options.traits.result_shape
        if signature not in self._results_by_signature and not (
            has_valid_scalar_shapes(outcome) and expected_shape in (None, *outcome.leaf_shapes)
        ):
            expected = "a number" if expected_shape is None else f"shape {expected_shape}"
            reason = f"returned {outcome.result_description} where {expected} is due"
            self._reject_misshapen_result(task_index, reason)
            return
        for group_results in self._results_by_signature.values():  # an odd result, tried again
            group_results.pop(task_index, None)
        group_results = self._results_by_signature.setdefault(signature, {})
        group_results[task_index] = outcome
        if group_results is self.results:
            self._record_arrival(task_index)
        elif not self.results or self._outvotes_current_results(group_results):
            self._switch_to_majority_shape(group_results)
        else:
            self._reject_mismatched_result(outcome)

    def _reject_misshapen_result(self, task_index: int, message: str) -> None:
        """Let a result be a failure of its task, because of its shape."""
        self._discard_unpadded_result(task_index)
        self.task_table.reject_result(task_index, Failure("shape", "WrongShape", message))

    def _discard_unpadded_result(self, task_index: int) -> None:
        """Forget the result without padding of a task, as what the task has returned is rejected."""
        if (
            self.coded_data.data_blocks.padded_block is not None
            and task_index == self.coded_data.data_blocks.padded_block[0]
        ):
            self.unpadded_result = None

    def _outvotes_current_results(self, candidates: dict[int, Outcome]) -> bool:
        """Whether these results are followed rather than those so far: if they are more.

        Where they are as many, or only their dtypes differ, those of parity blocks alone overrule none of
        data blocks: f of wider integers may be of another kind.
        """
        candidate, current = next(iter(candidates.values())), self._any_result
        has_data, had_data = (
            min(results) < len(self._code.systematic_indices) for results in (candidates, self.results)
        )
        has_same_shapes = (
            candidate.structure == current.structure and candidate.leaf_shapes == current.leaf_shapes
        )
        if has_data != had_data and (has_same_shapes or len(candidates) == len(self.results)):
            return has_data
        return len(candidates) > len(self.results)

    def discard_result(self, task_index: int, failure: Failure) -> None:
        """Take a received result, which is garbage, back out of the decoder."""
        del self.results[task_index]
        self._discard_unpadded_result(task_index)
        self.task_table.reject_result(task_index, failure)
        self._rebuild_arrival_tracker()

    @property
    def max_wait_seconds(self) -> float:
        """The longest wait for a result, or for f on the driver, that is not needed."""
        return max(BASE_WAIT_SECONDS, WAIT_TASK_FACTOR * max(self.task_table.worker_seconds, default=0.0))

    @property
    def seconds_since_decodable(self) -> float:
        """Seconds since the results were determined."""
        assert self.ready_at is not None
        return self.timer.elapsed_seconds - self.ready_at

    @property
    def redundancy_wait_seconds(self) -> float:
        """The wait for a result to check against: one median task time, within REDUNDANCY_WAIT_BOUNDS."""
        seconds = sorted(self.task_table.worker_seconds)
        # np.median imports numpy.ma.
        median_seconds = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
        min_seconds, max_seconds = REDUNDANCY_WAIT_BOUNDS
        return max(min_seconds, min(median_seconds, max_seconds))

    @property
    def must_verify_results(self) -> bool:
        """Whether it is to be found out what f is."""
        verify = self.options.verify
        return verify is True or (verify == "auto" and self.function_property.value is None)

    @property
    def local_evaluation_timeout(self) -> float:
        """Seconds for f on one block, where the driver has to wait for it; a moment when time is over."""
        return min(self.max_wait_seconds, max(REDUNDANCY_WAIT_BOUNDS[0], self.timer.remaining_seconds))

    @property
    def n_data_results(self) -> int:
        """Results of data blocks that count."""
        return sum(int(block_index) in self.results for block_index in self._code.systematic_indices)

    @property
    def mismatched_blocks(self) -> set[int]:
        """Data blocks of which a worker returned something of another structure or shape."""
        table, data_tasks = self.task_table, self._code.systematic_indices.tolist()
        failed_tasks = [task for task in data_tasks if table[task].failures]
        return {
            task for task in failed_tasks if any(failure.kind == "shape" for failure in table[task].failures)
        }

    def get_flat_results_by_task(self, leaf_index: int) -> dict[int, Array]:
        """Leaf number `leaf_index` of every received result, flat."""
        return {task: outcome.leaves[leaf_index].reshape(-1) for task, outcome in self.results.items()}

    def result_dtypes(self) -> list[DType]:
        """Dtypes of the leaves of the results, as data tasks return them.

        Parity blocks of integers are wider, and so may be f of them: when nothing else arrived, f
        of a data block tells.
        """
        first_task = min(self.results)
        outcome = self.results[first_task]
        if first_task < len(self._code.systematic_indices) or not any(
            map(is_integer_dtype, self.coded_data.data_blocks.dtypes)
        ):
            return outcome.leaf_dtypes
        if self._local_sample is None:
            read_block = partial(copy_block, self.coded_data, 0, use_data_block=True)
            evaluation = self.evaluate_locally(read_block, 0)
            self._local_sample = evaluation.wait_for_leaves(self.local_evaluation_timeout) or []
        if [leaf.shape for leaf in self._local_sample] != outcome.leaf_shapes:
            return outcome.leaf_dtypes
        return [leaf.dtype for leaf in self._local_sample]

    def evaluate_locally(self, build_block: Callable[[], Any], block_index: int) -> LocalEvaluation:
        """Start to evaluate f on coded block `block_index` on the driver; `build_block` makes it."""
        self.evaluated_locally.append(block_index)
        return LocalEvaluation(self.f, build_block, block_index)

    @property
    def result_structure(self) -> Structure:
        """How leaves make up a result."""
        return self.results[min(self.results)].structure

    def get_accuracy_limiting_dtype(self, result_dtype: DType) -> DType:
        """The dtype whose rounding limits results of `result_dtype`: parity blocks are rounded to the
        data's.
        """
        if is_integer_dtype(result_dtype):
            return np.dtype(np.float64)
        data_dtypes = self.coded_data.data_blocks.dtypes
        inexact_dtypes = [dtype for dtype in data_dtypes if not is_integer_dtype(dtype)]
        return max([result_dtype, *inexact_dtypes], key=machine_epsilon)

    def decode_results(self) -> list[list[Array]]:
        """The results of all data tasks; NonFiniteResultError if NaN or inf got in the way.

        CodeError for Python integers that parity does not determine.
        """
        if not len(self.tracker.missing_indices):
            self.decoded_results = [self.results[index].leaves for index in range(self._code.n_targets)]
        elif (decoder := self.tracker.decoder) is not self._decoder:
            started_at = self.timer.elapsed_seconds
            self.decoded_results, self._decoder = self._decode_missing_blocks(decoder), decoder
            self.decode_seconds = self.timer.elapsed_seconds - started_at
        if not self.decoded_results:
            raise NonFiniteResultError
        return self.decoded_results

    def _decode_missing_blocks(self, decoder: ErasureDecoder) -> list[list[Array]]:
        """The same, of which some are missing; empty if NaN or inf got in the way."""
        recovered: list[list[Array]] = []
        leaf_types = get_leaf_types(self.result_structure)
        for leaf_index, dtype in enumerate(self.result_dtypes()):
            received = self.get_flat_results_by_task(leaf_index)
            with ignore_nonfinite_warnings():
                blocks = decoder.decode(received, dtype)
            if dtype.kind in "fc" and not np.isfinite(blocks).all():
                return []
            if leaf_types[leaf_index] == "python" and is_integer_dtype(dtype) and decoder.modular:
                arrived, weights = decoder.arrived_indices, decoder.approximate_weights
                recovered.append(undo_wraparound(self.coded_data, received, arrived, weights, blocks))
            else:
                recovered.append(list(blocks))
        return self.merge_recovered_blocks(decoder.missing_indices, recovered)

    def merge_recovered_blocks(
        self, missing_indices: Array, recovered_leaves: list[list[Array]]
    ) -> list[list[Array]]:
        """The leaves of the k results: those that arrived, and of each leaf the flat ones that did not."""
        shapes = self._any_result.leaf_shapes
        leaves = {block_index: outcome.leaves for block_index, outcome in self.results.items()}
        for row, block_index in enumerate(missing_indices.tolist()):
            leaves[block_index] = [
                blocks[row].reshape(shape) for blocks, shape in zip(recovered_leaves, shapes)
            ]
        return [leaves[block_index] for block_index in range(self._code.n_targets)]

    @cached_property
    def undecodable_reason(self) -> str:
        """Why parity is of no use, as f turned integers that may wrap into floats; "" where it is."""
        return (
            ""
            if self.options.traits.meets_requirement
            else find_wraparound_reason(self.coded_data, self.result_dtypes())
        )

    def _switch_to_majority_shape(self, candidates: dict[int, Outcome]) -> None:
        """More results look like these than like any others: the others are failures of their tasks."""
        rejected, self.results = self.results, candidates
        for task_index in candidates:
            self.task_table.restore_result(task_index)
        for result in rejected.values():
            self._reject_mismatched_result(result)
        self._rebuild_arrival_tracker()

    def _reject_mismatched_result(self, result: Outcome) -> None:
        task_index, majority_result = result.task, self._any_result
        # rows of zeros may explain its shape
        if result.unpadded_result is not None and self.unpadded_result is not None:
            self._record_all_data_arrived()
            return
        message = f"returned {result.result_description}, others {majority_result.result_description}"
        if (
            task_index >= len(self._code.systematic_indices)
            and result.leaf_shapes == majority_result.leaf_shapes
        ):
            data_dtype, parity_dtype = (
                self.coded_data.block_layout(block_index)[0][0] for block_index in (0, self._code.n - 1)
            )
            message += (
                f": f of {np.dtype(parity_dtype)} blocks, which parity of {np.dtype(data_dtype)} is, "
                "has another kind of result; convert the data, or what f combines it with, so that both have "
                "one"
            )
        self._reject_misshapen_result(task_index, message)

    @property
    def _any_result(self) -> Outcome:
        return next(iter(self.results.values()))

    def _rebuild_arrival_tracker(self) -> None:
        self.ready_at = self.decodable_at = None
        self.is_ill_conditioned = False
        self.__dict__.pop("undecodable_reason", None)
        dtypes = self._any_result.leaf_dtypes
        for dtype in dtypes:
            _check_result_dtype(dtype)
        # else f rounds
        has_integers = any(is_integer_dtype(dtype) for dtype in self.coded_data.data_blocks.dtypes or dtypes)
        modular = self._code.supports_integers and has_integers and any(map(is_integer_dtype, dtypes))
        inexact_dtypes = [
            self.get_accuracy_limiting_dtype(dtype)
            for dtype in dtypes
            if not (modular and is_integer_dtype(dtype))
        ]
        limits = [self.get_rtol(dtype) / machine_epsilon(dtype) for dtype in inexact_dtypes]
        max_amplification = min(limits, default=np.inf)
        self.tracker = ArrivalTracker(self._code, modular=modular, max_amplification=max_amplification)
        for task_index in self.results:
            self._record_arrival(task_index)

    def _record_arrival(self, task_index: int) -> None:
        if self.tracker.add(task_index) and self.ready_at is None:
            self.ready_at, self.n_needed = self.timer.elapsed_seconds, self.tracker.n_arrived
        if self.decodable_at is None and self.tracker.state is not DecodingState.UNDECODABLE:
            self.decodable_at = self.timer.elapsed_seconds
        if self.unpadded_result is not None:
            self._record_all_data_arrived()

    def _record_all_data_arrived(self) -> None:
        """Note that nothing has to be decoded: also where f raised an exception of the rows of zeros only."""
        if self.ready_at is None and self.has_all_data_results(self.results):
            self.ready_at, self.n_needed = self.timer.elapsed_seconds, len(self.task_table.arrived)

    @property
    def decodable_tasks(self) -> Collection[int]:
        """The tasks whose results can be decoded from.

        Not among them is a task of the short block that has returned the result of its own rows, but none of
        the usual shape with the rows of zeros.
        """
        return self.results.keys()

    def has_all_data_results(self, task_indices: Collection[int]) -> bool:
        """Return whether results of these tasks, and that without padding, are those of all data tasks."""
        systematic = self._code.systematic_indices
        available_blocks = (
            set(task_indices) if self.unpadded_result is None else {*task_indices, len(systematic) - 1}
        )
        return len(systematic) > 0 and available_blocks.issuperset(systematic)

    def accept_ill_conditioned_decoding(self) -> bool:
        """Take the results at any accuracy, as no more can come; whether they determine the rest."""
        if not self.results or self.tracker.state is not DecodingState.ILL_CONDITIONED:
            return False
        self.tracker.accept_ill_conditioned()
        self.ready_at, self.n_needed = self.timer.elapsed_seconds, self.tracker.n_arrived
        self.is_ill_conditioned = True
        return True

    def get_rtol(self, result_dtype: DType) -> float:
        """The relative error accepted from decoding results of `result_dtype`."""
        return get_default_rtol(result_dtype) if self.options.rtol is None else self.options.rtol


def _check_result_dtype(dtype: DType) -> None:
    """CodeError for a result that could not be decoded if it were lost, whether or not it is."""
    try:
        check_supported_dtype(dtype, "the result of f")
    except CodeError as error:
        raise CodeError(f"{error}, or use hedged_map, which takes any f at all") from None
