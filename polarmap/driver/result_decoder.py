"""Track whether the received results of a coded map suffice to decode the missing ones, and decode them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import cached_property
from math import inf
from typing import Any, TypeVar

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes.arrival_tracker import ArrivalTracker, DecodingState
from polarmap.codes.base import ErasureDecoder
from polarmap.codes.compute.tiling import ignore_nonfinite_warnings
from polarmap.driver.collector import JobTimer
from polarmap.driver.local_evaluation import LocalEvaluator
from polarmap.driver.options import MapOptions
from polarmap.driver.received_results import ReceivedResults, get_leaf_types
from polarmap.dtypes import (
    Array,
    DType,
    check_supported_dtype,
    get_default_rtol,
    is_integer_dtype,
    machine_epsilon,
)
from polarmap.errors import CodeError

T = TypeVar("T")

MAX_TRIALS = 4  # the number of cached return values of `ResultDecoder.would_suffice`


class NonFiniteResultError(Exception):
    """Raised if results contain NaN or inf, because decoding would spread them to every decoded block."""


def find_accuracy_limiting_dtype(result_dtype: DType, data_dtypes: Sequence[DType]) -> DType:
    """Return the dtype that limits the accuracy of a decoded result.

    This is the least precise dtype of the data and the result, because parity blocks are rounded to the
    dtypes of the data.
    """
    if is_integer_dtype(result_dtype):
        return np.dtype(np.float64)
    inexact_dtypes = [dtype for dtype in data_dtypes if not is_integer_dtype(dtype)]
    return max([result_dtype, *inexact_dtypes], key=machine_epsilon)


class ResultDecoder:
    """Decodes the missing results of data blocks once enough results have been received.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks, one per task.
    options : MapOptions
        The options of the map, such as `rtol`.
    received : ReceivedResults
        The results to decode from. After each change, the caller must call `record_arrival`, `restart` or
        `record_all_data_arrived`.
    evaluator : LocalEvaluator
        Calls the mapped function on a data block to determine the result dtypes if no result of a data block
        has arrived.
    timer : JobTimer
        The time since the start of the map.

    Attributes
    ----------
    tracker : ArrivalTracker
        Tracks which missing results can be decoded. It exists once the first result has arrived.
    decodable_at, ready_at : float or None
        When the received results first sufficed for decoding at all, and when they sufficed for decoding with
        the accuracy of `rtol`, in seconds after the start of the map. None before.
    n_needed : int
        The number of results that had arrived at `ready_at`.
    is_ill_conditioned : bool
        Whether results are decoded less accurately than `rtol`, because no further result will arrive.
    decoded_results : list of lists of arrays
        The results of all data blocks after the latest decoding, each as a list of its arrays (leaves).
    decode_seconds : float
        The seconds that the latest decoding took.
    """

    def __init__(
        self,
        coded_data: CodedData,
        options: MapOptions,
        received: ReceivedResults,
        evaluator: LocalEvaluator,
        timer: JobTimer,
    ) -> None:
        self.received, self.coded_data, self._code = received, coded_data, coded_data.code
        self._options, self._evaluator, self._timer = options, evaluator, timer
        self.tracker: ArrivalTracker
        self.decodable_at: float | None = None
        self.ready_at: float | None = None
        self.n_needed = 0
        self.is_ill_conditioned = False
        self.decoded_results: list[list[Array]] = []
        self.decode_seconds = 0.0
        self._latest_decoder: ErasureDecoder | None = None  # the decoder that computed `decoded_results`

        # The result of a call of the mapped function on a data block, made on the driver to find out the
        # dtypes of results.
        self._local_sample: list[Array] | None = None
        self._cached_decoder: ErasureDecoder | None = None  # the decoder to which `_cached_values` belong
        self._cached_values: dict[Hashable, Any] = {}
        self._trial_cache: dict[Any, bool] = {}  # the cached answers of `would_suffice`

    # -- arrivals ---------------------------------------------------------------------------

    def restart(self) -> None:
        """Reset the decoder, and record the arrival of all results that are used now.

        Called when the first result has arrived, or when received results have been rejected.
        """
        self.ready_at = self.decodable_at = None
        self.is_ill_conditioned = False
        self.__dict__.pop("undecodable_reason", None)
        result_dtypes = self.received.first_received.leaf_dtypes
        for dtype in result_dtypes:
            _check_result_dtype(dtype)
        # Decode integers modulo 2^64 only if the data contains integers. Integers that the mapped function
        # computes from floats are rounded, so decode them as real numbers.
        has_integers = any(map(is_integer_dtype, self.coded_data.data_blocks.dtypes or result_dtypes))
        modular = self._code.supports_integers and has_integers and any(map(is_integer_dtype, result_dtypes))
        inexact_dtypes = [
            self.get_accuracy_limiting_dtype(dtype)
            for dtype in result_dtypes
            if not (modular and is_integer_dtype(dtype))
        ]
        limits = [self.get_rtol(dtype) / machine_epsilon(dtype) for dtype in inexact_dtypes]
        self.tracker = ArrivalTracker(self._code, modular=modular, max_amplification=min(limits, default=inf))
        for task_index in self.received.by_task:
            self.record_arrival(task_index)

    def record_arrival(self, task_index: int) -> None:
        """Record that the result of a task has arrived."""
        if self.tracker.add(task_index) and self.ready_at is None:
            self.ready_at, self.n_needed = self._timer.elapsed_seconds, self.tracker.n_arrived
        if self.decodable_at is None and self.tracker.state is not DecodingState.UNDECODABLE:
            self.decodable_at = self._timer.elapsed_seconds
        if self.received.unpadded_result is not None:
            self.record_all_data_arrived()

    def record_all_data_arrived(self) -> None:
        """Set `ready_at` if the results of all data blocks have arrived, so that no decoding is needed."""
        received = self.received
        if self.ready_at is None and received.has_all_data_results(received.by_task):
            self.ready_at, self.n_needed = self._timer.elapsed_seconds, received.n_arrived_tasks

    def accept_ill_conditioned(self) -> bool:
        """Accept decoding with errors above `rtol`, and return whether decoding is possible at all."""
        if not self.received.by_task or self.tracker.state is not DecodingState.ILL_CONDITIONED:
            return False
        self.tracker.accept_ill_conditioned()
        self.ready_at, self.n_needed = self._timer.elapsed_seconds, self.tracker.n_arrived
        self.is_ill_conditioned = True
        return True

    @property
    def seconds_since_ready(self) -> float:
        """The seconds since enough results have arrived to decode the missing ones."""
        assert self.ready_at is not None
        return self._timer.elapsed_seconds - self.ready_at

    def would_suffice(self, task_indices: Collection[int], within_rtol: bool = True) -> bool:
        """Return whether the results of all data blocks can be decoded from the results of these tasks alone.

        Answering this is as expensive as decoding, so the latest answers are cached.

        Parameters
        ----------
        task_indices : collection of int
            The tasks.
        within_rtol : bool
            Whether the decoded results must also meet `rtol`.
        """
        has_enough = len(task_indices) >= self._code.recovery_threshold
        if not (self.received.by_task and has_enough):
            return has_enough or self.received.has_all_data_results(task_indices)
        max_amplification = self.tracker.max_amplification if within_rtol else inf
        cache_key = frozenset(task_indices), self.tracker.modular, max_amplification
        if cache_key not in self._trial_cache:
            if len(self._trial_cache) >= MAX_TRIALS:
                self._trial_cache.clear()
            modular = self.tracker.modular
            trial = ArrivalTracker(self._code, modular=modular, max_amplification=max_amplification)
            for task_index in task_indices:
                trial.add(task_index)
            self._trial_cache[cache_key] = trial.is_ready
        return self._trial_cache[cache_key]

    def compute_once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value of `compute()`, cached until another result arrives.

        Parameters
        ----------
        key : hashable
            Identifies the value.
        compute : callable
            Called with no arguments to compute the value from the received results.
        """
        if self._cached_decoder is not self.tracker.decoder:
            self._cached_decoder, self._cached_values = self.tracker.decoder, {}
        if key not in self._cached_values:
            self._cached_values[key] = compute()
        value: T = self._cached_values[key]
        return value

    # -- dtypes -----------------------------------------------------------------------------

    def result_dtypes(self) -> list[DType]:
        """Return the dtypes of the arrays in the result of a data block.

        Results of parity blocks may have different dtypes, because the parity of integers is stored in wider
        integers. If no result of a data block has arrived, the driver calls the mapped function on one.
        """
        first_task = min(self.received.by_task)
        outcome = self.received.by_task[first_task]
        if first_task < len(self._code.systematic_indices) or not any(
            map(is_integer_dtype, self.coded_data.data_blocks.dtypes)
        ):
            return outcome.leaf_dtypes
        if self._local_sample is None:
            evaluation = self._evaluator.start_on_block(0, use_data_block=True)
            self._local_sample = self._evaluator.wait_for_result_arrays(evaluation) or []
        if [leaf.shape for leaf in self._local_sample] != outcome.leaf_shapes:
            return outcome.leaf_dtypes
        return [leaf.dtype for leaf in self._local_sample]

    def get_accuracy_limiting_dtype(self, result_dtype: DType) -> DType:
        """Return the dtype that limits the accuracy of decoded results of `result_dtype`."""
        return find_accuracy_limiting_dtype(result_dtype, self.coded_data.data_blocks.dtypes)

    def get_rtol(self, result_dtype: DType) -> float:
        """Return the permitted relative error of decoded results of `result_dtype`."""
        return get_default_rtol(result_dtype) if self._options.rtol is None else self._options.rtol

    @cached_property
    def undecodable_reason(self) -> str:
        """The reason why results of integer data cannot be decoded, or "" if they can.

        Decoding is impossible if the mapped function returns floats and the integers in parity blocks may
        overflow.
        """
        has_integers = any(map(is_integer_dtype, self.coded_data.data_blocks.dtypes))
        if self._options.traits.meets_requirement or not has_integers:
            return ""
        from polarmap.driver.wraparound import explain_overflow_obstacle  # lazy import: few maps need it

        return explain_overflow_obstacle(self.coded_data, self.result_dtypes())

    # -- decoding ---------------------------------------------------------------------------

    def decode(self) -> list[list[Array]]:
        """Decode the missing results, and return the results of all data blocks, each as a list of arrays.

        The results are cached until another result arrives.

        Raises
        ------
        NonFiniteResultError
            If missing results cannot be decoded because received results contain NaN or inf.
        CodeError
            If a result is a Python integer that cannot be decoded uniquely.
        """
        if not len(self.tracker.missing_indices):
            received = self.received.by_task
            self.decoded_results = [received[index].leaves for index in range(self._code.n_targets)]
        elif (decoder := self.tracker.decoder) is not self._latest_decoder:
            started_at = self._timer.elapsed_seconds
            self.decoded_results, self._latest_decoder = self._decode_missing_blocks(decoder), decoder
            self.decode_seconds = self._timer.elapsed_seconds - started_at
        if not self.decoded_results:
            raise NonFiniteResultError
        return self.decoded_results

    def use_unpadded_results(self) -> None:
        """Set `decoded_results` to the received results of data blocks, leaving [] for missing ones."""
        outcomes = map(self.received.by_task.get, range(self._code.n_targets))
        self.decoded_results = [[] if outcome is None else outcome.leaves for outcome in outcomes]

    def _decode_missing_blocks(self, decoder: ErasureDecoder) -> list[list[Array]]:
        """Decode the missing results and return all results, or [] if NaN or inf prevent decoding."""
        recovered: list[list[Array]] = []
        leaf_types = get_leaf_types(self.received.structure)
        for leaf_index, dtype in enumerate(self.result_dtypes()):
            received = self.received.get_flat_leaves_by_task(leaf_index)
            with ignore_nonfinite_warnings():
                blocks = decoder.decode(received, dtype)
            if dtype.kind in "fc" and not np.isfinite(blocks).all():
                return []
            if leaf_types[leaf_index] == "python" and is_integer_dtype(dtype) and decoder.modular:
                from polarmap.driver.wraparound import undo_wraparound  # lazy import: few maps need it

                arrived, weights = decoder.arrived_indices, decoder.approximate_weights
                recovered.append(undo_wraparound(self.coded_data, received, arrived, weights, blocks))
            else:
                recovered.append(list(blocks))
        return self.merge_recovered_blocks(decoder.missing_indices, recovered)

    def merge_recovered_blocks(
        self, missing_indices: Array, recovered_leaves: list[list[Array]]
    ) -> list[list[Array]]:
        """Return the results of all data blocks as lists of arrays, merging received and recovered ones.

        missing_indices : the data blocks whose results were recovered (decoded or estimated).
        recovered_leaves : for each array of a result, the flat recovered values of the missing blocks.
        """
        shapes = self.received.first_received.leaf_shapes
        leaves = {block_index: outcome.leaves for block_index, outcome in self.received.by_task.items()}
        for row, block_index in enumerate(missing_indices.tolist()):
            leaves[block_index] = [
                blocks[row].reshape(shape) for blocks, shape in zip(recovered_leaves, shapes)
            ]
        return [leaves[block_index] for block_index in range(self._code.n_targets)]


def _check_result_dtype(dtype: DType) -> None:
    """Raise CodeError if results of this dtype cannot be decoded, even if no result is missing."""
    try:
        check_supported_dtype(dtype, "the result of f")
    except CodeError as error:
        raise CodeError(f"{error}, or use hedged_map, which takes any f at all") from None
