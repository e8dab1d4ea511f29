"""Collect the results of a coded map until the missing ones can be decoded and the results are verified.

    outcome -> ReceivedResults -> ResultDecoder -> AcceptancePolicy -> Accepted: the map is over
               (shapes agree)     (decodable?)     (Verifier: is f     Rejected: drop one result
                                                   linear?)            Refused: wait for all data tasks

The collector also builds the final results of the map and the fields of its report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes.arrival_tracker import DecodingState
from polarmap.codes.base import ErasureDecoder
from polarmap.driver.acceptance import AcceptancePolicy
from polarmap.driver.collector import Collector, JobTimer, WaitLimits
from polarmap.driver.failure_messages import (
    NONFINITE_TEXT,
    build_failure_exception,
    find_decisive_exception,
    format_nonfinite_message,
    format_timeout_message,
    format_too_few_results_message,
)
from polarmap.driver.function_properties import FunctionProperty
from polarmap.driver.local_evaluation import LocalEvaluator
from polarmap.driver.options import MapOptions
from polarmap.driver.received_results import ReceivedResults, Reception
from polarmap.driver.result_decoder import NonFiniteResultError, ResultDecoder
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.driver.task_table import TaskTable
from polarmap.driver.verification import Accepted, Refused, Rejected, Verdict, Verifier
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, NotLinearError, warn
from polarmap.executors.interface import FailureKind, Outcome, read_only_view
from polarmap.report import PLANNED_LOSS_RATE, Report, Verification
from polarmap.worker.pytree import unflatten

if TYPE_CHECKING:
    from polarmap.driver.estimates import DeadlineEstimator, Estimate
    from polarmap.driver.padded_block import PaddedBlock
    from polarmap.driver.padding import PaddingAnalyzer

# Errors that rule out decoding. They end the map unless the results of all data blocks arrive.
PERMANENT_DECODING_ERRORS = NotLinearError, CodeError
# The longest time between two polls, in seconds, while the collector waits for a check of decoded results or
# for another result that makes decoding more accurate.
MAX_SETTLE_INTERVAL = 0.25


class CodedCollector(Collector):
    """Collects the results of a coded map, decodes the missing ones, and finishes the map after verification.

    Parameters
    ----------
    padding_analyzer : PaddingAnalyzer or None
        Analyzes how padding affects the result of the last block. None if no block is padded.
    deadline_estimator : DeadlineEstimator or None
        Estimates the results that are still missing at the deadline. If None, the map fails instead.
    driver_f : callable
        The mapped function, in a form that can be called on the driver (this process) to check results.
    coded_data : CodedData
        The coded blocks, one per task.
    options : MapOptions
        The options of the map.
    task_table : TaskTable
        The state of the map's tasks.
    timer : JobTimer
        The time since the start of the map and until its deadline.

    Attributes
    ----------
    received : ReceivedResults
        The results that have arrived.
    decoder : ResultDecoder
        Tracks whether the arrived results suffice to decode the missing ones, and decodes them.
    verifier : Verifier
        Checks the decoded results.
    padded_block : PaddedBlock or None
        The last block, if rows of padding were appended to it.
    verification : Verification or None
        How the results were verified. None until they have been accepted, after which they do not change.
    decoding_error : NonFiniteResultError, NotLinearError, CodeError or None
        Why nothing can be decoded from these results. The map then waits for the results of all data tasks.
    """

    def __init__(
        self,
        padding_analyzer: PaddingAnalyzer | None,
        deadline_estimator: DeadlineEstimator | None,
        driver_f: Callable[[Any], Any],
        coded_data: CodedData,
        options: MapOptions,
        task_table: TaskTable,
        timer: JobTimer,
    ) -> None:
        super().__init__(task_table, timer)
        self._coded_data, self._code, self._options = coded_data, coded_data.code, options
        is_trusted = options.traits.meets_requirement or options.verify is False
        argument_layout = coded_data.data_blocks.argument_layout
        self._function_property = FunctionProperty(
            driver_f, self._code.requirement, argument_layout, is_trusted
        )
        self._limits = limits = WaitLimits(task_table, timer)
        self._evaluator = evaluator = LocalEvaluator(driver_f, coded_data, limits)
        self.received = received = ReceivedResults(coded_data, options.traits.result_shape, task_table)
        self.decoder = decoder = ResultDecoder(coded_data, options, received, evaluator, timer)
        self.verifier = verifier = Verifier(coded_data, options, decoder, evaluator)
        is_f_known = self._function_property.value is not None
        self._acceptance_policy = AcceptancePolicy(
            coded_data, options, decoder, verifier, limits, task_table, is_f_known
        )
        self.padded_block: PaddedBlock | None = None
        if padding_analyzer is not None:
            from polarmap.driver.padded_block import PaddedBlock  # lazy import: few maps need it

            self.padded_block = PaddedBlock(padding_analyzer, received, limits, timer)
        self._deadline_estimator = deadline_estimator
        self._accepted_estimate: Estimate | None = None
        self.verification: Verification | None = None
        self.decoding_error: NonFiniteResultError | NotLinearError | CodeError | None = None
        # The decoder that was in use when `decoding_error` was set. The error is cleared once another result
        # has arrived, because there is a new decoder then.
        self._refused_decoder: ErasureDecoder | None = None
        # The seconds that earlier maps spent encoding the same blocks. The report does not count them.
        self._earlier_encode_seconds = coded_data.encode_seconds
        self._has_warned_of_parity = False

    # -- what arrives -----------------------------------------------------------------------

    def add_outcome(self, outcome: Outcome) -> None:
        """Store the result of an attempt unless the results of the map have already been accepted."""
        reception = self.received.add(outcome)
        if reception is Reception.ADDED:
            self.decoder.record_arrival(outcome.task)
        elif reception is Reception.REGROUPED:
            self.decoder.restart()
        elif reception is Reception.UNPADDED_ONLY:
            self.decoder.record_all_data_arrived()

    def try_finish(self) -> bool:
        """Decode, verify and accept the results if enough have arrived. Return whether the map is over."""
        # The warning is set during encoding, so it may appear after the map has started.
        if self._coded_data.parity_warning and not self._has_warned_of_parity:
            self._has_warned_of_parity = True
            warn(self._coded_data.parity_warning)
        decodable_at = self.decoder.decodable_at
        if decodable_at is not None and self._should_accept_ill_conditioned(decodable_at):
            self.decoder.accept_ill_conditioned()
        if self.verification is None and self.received.by_task:
            self._judge_results()
        if not (self._try_settle() or self._try_estimate_missing_results()):
            return False
        if self.decoder.is_ill_conditioned:
            warn(
                "what arrived determines the other results, but no more accurately than to "
                f"{self.verifier.compute_error_bound():.2g} (relative), which is more than rtol: "
                "no further result came"
            )
        return True

    def _should_accept_ill_conditioned(self, decodable_at: float) -> bool:
        """Return whether to decode less accurately than `rtol` requires, instead of waiting any longer."""
        if self.has_sufficient_results or self.decoding_error is not None:
            return False
        return self.timer.elapsed_seconds - decodable_at > self._limits.max_wait_seconds

    def _try_settle(self) -> bool:
        """Return whether all results have been accepted, including that of the padded block.

        The padded block is the last block if rows of zeros were appended to make it as long as the others.
        """
        padded_block, is_accepted = self.padded_block, self.verification is not None
        if padded_block is None:
            return is_accepted
        if is_accepted or (self.decoder.ready_at is not None and self.decoding_error is None):
            padded_block.poll(is_accepted)
        return is_accepted and padded_block.try_settle()

    # -- acceptance -------------------------------------------------------------------------

    def _judge_results(self) -> None:
        """Accept the results if the missing ones can be decoded and the checks pass.

        Refused results are judged again whenever another result arrives. The new result may show which task
        returned garbage, or make it possible to decode integers that were undetermined before.
        """
        decoder, received, tracker = self.decoder, self.received, self.decoder.tracker
        has_padding = received.unpadded_result is not None and len(tracker.missing_indices) > 0
        if has_padding and received.has_all_data_results(received.by_task):
            self._accept_unpadded_results()
            return
        if self._refused_decoder is not None and self._refused_decoder is not tracker.decoder:
            self.decoding_error = self._refused_decoder = None
        if tracker.state is not DecodingState.DECODABLE:
            return
        if self.decoding_error is not None:
            if len(tracker.missing_indices):
                return
            decoder.n_needed = tracker.n_arrived
            if isinstance(self.decoding_error, NonFiniteResultError):
                self._accept_complete_results()
                return
        self._act_on_verdict(self._acceptance_policy.judge())

    def _act_on_verdict(self, verdict: Verdict) -> None:
        if isinstance(verdict, Accepted):
            if verdict.proves_f:
                self._function_property.remember_value()
            self._accept(verdict.verification, verdict.warning)
        elif isinstance(verdict, Rejected):
            self.received.discard(verdict.task_index, verdict.failure)
            self.decoder.restart()
        elif isinstance(verdict, Refused):
            self._wait_for_all_data(verdict.error)

    def _accept(self, verification: Verification, warning: str = "") -> None:
        """Accept the results as final, and issue `warning` to the map's caller unless it is empty."""
        if warning:
            warn(warning)
        self.verification, self.received.is_frozen = verification, True

    def _accept_complete_results(self) -> None:
        """Accept the results of all data blocks as received, without decoding."""
        self.decoder.decode()
        self._accept(Verification.NOT_NEEDED)

    def _accept_unpadded_results(self) -> None:
        """Accept the results of all data blocks. The result of the last block is that without padding.

        Called if the mapped function failed on this block with its padding (rows of zeros), but not without.
        """
        self.decoder.use_unpadded_results()
        warning = "f could not be verified: it raised an exception, or gave another shape, of rows of zeros"
        self._accept(Verification.NOT_NEEDED, warning if self._options.verify is True else "")

    def _wait_for_all_data(self, error: NonFiniteResultError | NotLinearError | CodeError) -> None:
        """Stop decoding and wait for the results of all data blocks, which need no decoding.

        If they have all arrived and merely contain NaN or inf, they are accepted. Raises `error`, or an
        exception with that cause, if waiting cannot help, for example because no task has a data block.
        """
        is_complete = not len(self.decoder.tracker.missing_indices)
        has_data_tasks = len(self._code.systematic_indices) > 0
        if isinstance(error, NonFiniteResultError):
            if not has_data_tasks:
                raise NotDecodableError("results contain NaN or inf, so nothing can be decoded") from error
            self.decoding_error = error
            if is_complete:
                self._accept_complete_results()
            return
        must_hold = self._options.traits.meets_requirement or self._options.verify is True
        if is_complete or not has_data_tasks or (isinstance(error, NotLinearError) and must_hold):
            raise error
        self.decoding_error, self._refused_decoder = error, self.decoder.tracker.decoder

    # -- the deadline -----------------------------------------------------------------------

    def _try_estimate_missing_results(self) -> bool:
        """Estimate and accept missing results if the deadline has passed and the caller requested estimates.

        Returns whether the results were accepted.
        """
        estimator = self._deadline_estimator
        if estimator is None or self.timer.remaining_seconds > 0:
            return False
        self._check_estimable()
        is_accepted = self.verification is not None
        estimate = estimator.estimate(self.decoder, self.padded_block, is_accepted)
        error = self.decoding_error
        problem = error.finding if isinstance(error, NotLinearError) else str(error or "")
        problem = problem or self._describe_contradiction()
        if problem:
            estimate = estimate.with_unknown_errors(self.decoder.tracker.missing_indices.tolist())
            warn(f"{problem}; what is decoded or estimated may be far off")
        self.decoder.decoded_results, self._accepted_estimate = estimate.block_leaves, estimate
        self.decoder.n_needed = self.decoder.n_needed or len(self.task_table.arrived)
        self._accept(self.verification or Verification.NO)
        return True

    def _check_estimable(self) -> None:
        """Raise an error if the missing results cannot be estimated from the received ones."""
        if not self.received.by_task:
            timeout_text = f"the timeout of {self.timer.timeout:g} s"
            self._raise_with_cause(
                CodedTimeoutError(f"no result arrived within {timeout_text}: nothing to estimate from")
            )
        if not self._can_tolerate_nonfinite_values:
            self._raise_with_cause(NotDecodableError(self._format_nonfinite_message()))

    @property
    def _can_tolerate_nonfinite_values(self) -> bool:
        """Whether NaN and inf do no harm, because no result contains any or no result has to be decoded."""
        if isinstance(self.decoding_error, NonFiniteResultError):
            return False
        return self.received.has_all_data_results(self.received.by_task) or self.received.has_finite_values

    def _describe_contradiction(self) -> str:
        """Evaluate the parity checks and return a message if any is violated, else ""."""
        residuals = self.verifier.evaluate_redundant_checks()
        if residuals is None or not residuals.is_violated:
            return ""
        return (
            f"the parity equations are off by {residuals.max_residual:.2g} (relative): f is "
            "not linear, or a worker returned garbage"
        )

    # -- what the scheduler asks ------------------------------------------------------------

    @property
    def recovery_threshold(self) -> int:
        """The minimum number of results from which the missing ones can be decoded."""
        return self._code.recovery_threshold

    @property
    def has_sufficient_results(self) -> bool:
        """Whether the results that have arrived suffice, so that no further result is needed."""
        if self.verification is None and (self.decoder.ready_at is None or self.decoding_error is not None):
            return False
        return self.awaited_task is None

    @property
    def decodable_tasks(self) -> Collection[int]:
        """The tasks whose results can be used for decoding.

        The last block may be padded with rows of zeros. Its task is excluded if it returned only the result
        for the block without padding.
        """
        return self.received.by_task.keys()

    @property
    def can_use_parity(self) -> bool:
        """Whether results of parity (redundant) tasks would help: True unless decoding has been ruled out."""
        return self.decoding_error is None

    @property
    def awaited_task(self) -> int | None:
        """The index of the only task that the map still waits for, or None if there is no such task.

        This is the task of the padded block (the last block, with rows of zeros appended) if its result is
        the only one missing and cannot be decoded.
        """
        padded_block = self.padded_block
        if padded_block is None or self.decoder.ready_at is None:
            return None
        if self.decoding_error is not None and self.verification is None:
            return None
        return padded_block.task_index if padded_block.must_be_awaited else None

    def would_suffice(self, task_indices: Collection[int], within_rtol: bool = True) -> bool:
        """Return whether the map could finish with the results of these tasks alone.

        If decoding has been ruled out, all data tasks are needed.

        within_rtol : whether the decoded results must also meet `rtol`.
        """
        if self.decoding_error is not None:
            return self.received.has_all_data_results(task_indices)
        return self.decoder.would_suffice(task_indices, within_rtol)

    def can_pending_tasks_suffice(self, within_rtol: bool = True) -> bool:
        """Return whether the map can succeed with the tasks that have returned or may still return.

        If results differ in shape, each shape may turn out to be the right one, so each is considered.
        """
        awaited_task = self.awaited_task
        if awaited_task is not None:
            return awaited_task in self.task_table.pending_tasks
        pending = self.task_table.pending_tasks | self.task_table.held_back
        return any(
            self.would_suffice(task_indices, within_rtol)
            for task_indices in self.received.iterate_usable_task_sets(pending)
        )

    def choose_tasks_to_retry(self, failed_tasks: Collection[int]) -> Collection[int]:
        """Return which of the failed tasks to retry.

        These are all of them, unless the map waits for `awaited_task` only.
        """
        awaited_task = self.awaited_task
        if awaited_task is None:
            return failed_tasks
        return [awaited_task] if awaited_task in failed_tasks else []

    def poll_interval(self) -> float:
        """Return the seconds after which to call `try_finish` although no task has ended, or inf.

        Once results can be decoded, the map polls at slowly growing intervals. It waits for checks on the
        driver, or for a further result that makes decoding more accurate. If the results have been refused
        as wrong, polling is useless until another result arrives, so inf is returned.
        """
        decoder = self.decoder
        decodable_at = decoder.decodable_at if decoder.ready_at is None else decoder.ready_at
        if decodable_at is None:
            return inf
        if self.decoding_error is not None and len(decoder.tracker.missing_indices):
            return inf
        return min(max(0.02, (self.timer.elapsed_seconds - decodable_at) / 20), MAX_SETTLE_INTERVAL)

    def on_tasks_exhausted(self) -> None:
        """Decode as accurately as possible or raise an error, because no further results can arrive.

        If missing results are to be estimated at the deadline, do not raise but wait for the deadline.
        """
        if self._deadline_estimator is not None and (
            self._try_accept_ill_conditioned() or self.received.by_task
        ):
            return
        if self.padded_block is not None and self.awaited_task is not None:
            self._raise_awaited_task_failed(self.padded_block)
        if self._try_accept_ill_conditioned():
            return
        error = find_decisive_exception(self.task_table, self.would_suffice)
        if error is not None and self.decoding_error is None:
            raise error
        message = (
            format_too_few_results_message(self.task_table, self.recovery_threshold)
            if self.decoding_error is None
            else self._format_nonfinite_message()
        )
        self._raise_with_cause(NotDecodableError(message))

    def _try_accept_ill_conditioned(self) -> bool:
        """Allow decoding that is less accurate than `rtol` requires.

        Returns whether the missing results can then be decoded, now or once more tasks have returned.
        """
        if self.task_table.pending_tasks and self.can_pending_tasks_suffice(within_rtol=False):
            return True
        return self.decoding_error is None and self.decoder.accept_ill_conditioned()

    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """Raise a CodedTimeoutError that gives the reason, unless missing results will be estimated."""
        if self._deadline_estimator is not None:
            return
        reason, decoder = "", self.decoder
        if self.awaited_task is not None and self.padded_block is not None:
            description = self.padded_block.analyzer.padded_block_description
            reason = f"; task {self.awaited_task} has to return, as {description}"
        elif not self.can_use_parity:
            reason = f"; results contain {NONFINITE_TEXT}"
        elif decoder.ready_at is not None:
            reason = (
                "; they determine the rest, but f could not be verified in time (verify=False skips that)"
            )
        elif len(self.received.by_task) >= self.recovery_threshold:
            reason = "; they do not determine the rest, or not as accurately as rtol asks for"
        message = format_timeout_message(
            self.task_table, self.recovery_threshold, self.timer.timeout, reason, n_receiving_workers
        )
        self._raise_with_cause(CodedTimeoutError(message))

    def _raise_awaited_task_failed(self, padded_block: PaddedBlock) -> NoReturn:
        """Raise an exception because the task of a padded block failed and its result cannot be decoded."""
        task_index, analyzer = padded_block.task_index, padded_block.analyzer
        failure = self.task_table[task_index].last_failure
        label = f"task {task_index} of {self._code.n}: {analyzer.padded_block_description}"
        if failure is not None and failure.kind == FailureKind.RAISED:
            raise build_failure_exception(label, failure)
        self._raise_with_cause(
            NotDecodableError(
                f"{label}. Rows of zeros change the result of f, so this one cannot be decoded, and its task "
                f"failed: {failure}. Raise retries=, or {analyzer.block_count_advice.lower()}"
            )
        )

    def _format_nonfinite_message(self) -> str:
        return format_nonfinite_message(
            self.task_table, self.recovery_threshold, self.received.n_data_results
        )

    def _raise_with_cause(self, error: Exception) -> NoReturn:
        """Raise `error`, or `decoding_error` if that is why the arrived results could not be decoded."""
        if isinstance(self.decoding_error, PERMANENT_DECODING_ERRORS):
            error = self.decoding_error
        raise error from self.task_table.first_exception

    # -- what the caller of the map gets ----------------------------------------------------

    def make_unchecked_result_getter(self, task_index: int) -> Callable[[], Any] | None:
        """Return a function that builds the result of a data block before the result has been checked.

        Its arrays are read-only, because missing results may still be decoded from them. Returns None if the
        task has returned no data-block result, or only one that may be affected by padding.
        """
        outcome, k = self.received.by_task.get(task_index), len(self._code.systematic_indices)
        if self.padded_block is not None and task_index == k - 1:
            has_result = self.padded_block.has_unpadded_result
            return partial(self.padded_block.build_result, [], read_only_view) if has_result else None
        if outcome is None or task_index >= k or outcome.result_ref:
            return None
        structure, leaves = outcome.structure, outcome.leaves
        return lambda: unflatten(structure, list(map(read_only_view, leaves)))

    def build_interim_estimate(self, report: Report) -> CodedResult[Any] | None:
        """Return all results, with the missing ones estimated, or None if they cannot be estimated.

        Also returns None once the missing results can be decoded exactly.
        """
        decoder, padded_block = self.decoder, self.padded_block
        if not self.received.by_task or decoder.tracker.is_ready:
            return None
        if not self._can_tolerate_nonfinite_values or decoder.undecodable_reason:
            return None
        if padded_block is not None and not (
            padded_block.has_unpadded_result or padded_block.analyzer.has_known_effects
        ):
            return None
        from polarmap.driver.estimates import estimate_missing_results  # lazy import: few maps need it

        estimate = estimate_missing_results(decoder).with_padded_block(padded_block)
        errors = estimate.errors if any(estimate.errors) else ()
        build_report = partial(replace, report, errors=errors, error_p90=estimate.error_p90)
        # The arrays are made read-only, because missing results may still be decoded from them.
        block_results = self._unflatten_blocks(estimate.block_leaves, read_only_view)
        return CodedResult(block_results, LazyReport(build_report))

    @cached_property
    def block_results(self) -> list[Any]:
        """The accepted results of the data blocks, as returned to the caller of the map."""
        return self._unflatten_blocks(self.decoder.decoded_results)

    def build_result(self, report: LazyReport) -> CodedResult[Any]:
        """Return the accepted results with the report of the map."""
        return CodedResult(self.block_results, report)

    def iterate_accepted_results(self) -> Iterable[tuple[int, Callable[[], Any]]]:
        """Yield each accepted result as a pair: its block index and a function that returns the result.

        Received results are yielded first, in order of arrival, followed by decoded ones.
        """
        if self.received.result_refs:  # The results are in storage: only samples were received.
            return
        arrived_at = self.task_table.arrived
        indices = range(len(self.decoder.decoded_results))
        for block_index in sorted(indices, key=lambda index: arrived_at.get(index, inf)):
            yield block_index, partial(self.block_results.__getitem__, block_index)

    def _unflatten_blocks(
        self, block_leaves: list[list[Array]], transform: Callable[[Array], Array] | None = None
    ) -> list[Any]:
        """Remove padding from the results, apply `transform` to each array, and rebuild their structure."""
        structure, padded_block = self.received.structure, self.padded_block
        if transform is not None:
            block_leaves = [list(map(transform, leaves)) for leaves in block_leaves]
        n_full_blocks = None if padded_block is None else padded_block.task_index
        block_results = [unflatten(structure, leaves) for leaves in block_leaves[:n_full_blocks]]
        if padded_block is not None:
            block_results.append(padded_block.build_result(block_leaves[-1], transform))
        return block_results

    # -- the report -------------------------------------------------------------------------

    @property
    def unneeded_tasks(self) -> list[int]:
        """The parity tasks whose results were not used for decoding."""
        tracker = self.decoder.tracker
        used_mask = tracker.arrived_mask if len(tracker.missing_indices) else np.zeros(self._code.n, bool)
        parity_tasks = range(len(self._code.systematic_indices), self._code.n)
        return [task for task in parity_tasks if not used_mask[task]]

    @property
    def recovered_blocks(self) -> list[int]:
        """The data blocks whose results were decoded or estimated rather than received."""
        missing_blocks: list[int] = self.decoder.tracker.missing_indices.tolist()
        if self.received.unpadded_result is None or self.padded_block is None:
            return missing_blocks
        return [index for index in missing_blocks if index != self.padded_block.task_index]

    def build_report_fields(self, elapsed_seconds: float) -> dict[str, Any]:
        """Return the report fields about decoding and verification.

        elapsed_seconds : the run time of the map.
        """
        decoder, verification, padded_block = self.decoder, self.verification, self.padded_block
        wait_seconds, unchecked_tasks, residuals = (
            0.0,
            tuple[int, ...](),
            self.verifier.parity_checks.residuals,
        )
        if verification not in (Verification.NOT_NEEDED, Verification.NO):
            wait_seconds = max(0.0, elapsed_seconds - (decoder.ready_at or 0.0) - decoder.decode_seconds)
        if verification in (Verification.PARITY, Verification.LOCAL):
            unchecked_tasks = self.verifier.find_unchecked_tasks()
            if padded_block is not None:
                unchecked_tasks = padded_block.add_unchecked_task(unchecked_tasks)
        if padded_block is not None:
            padded_block.cache_padding_effects()
        return {
            "needed": decoder.n_needed,
            "encode_seconds": self._coded_data.encode_seconds - self._earlier_encode_seconds,
            "decode_seconds": decoder.decode_seconds,
            "redundancy_wait_seconds": wait_seconds,
            "residual": residuals and residuals.max_residual,
            "verified": str(verification),
            "unchecked": unchecked_tasks,
            "last_block": "" if padded_block is None else padded_block.result_source,
            "evaluated_locally": tuple(self._evaluator.evaluated_blocks),
            **self._build_accuracy_fields(),
            **self._build_guarantee_fields(),
        }

    def _build_guarantee_fields(self) -> dict[str, Any]:
        """Return the report fields that say how many lost blocks each group of blocks survives.

        The dict is empty if the code does not divide the blocks into groups.
        """
        guarantee = self._code.get_group_guarantee(PLANNED_LOSS_RATE)
        if guarantee is None:
            return {}
        n_groups, max_losses, failure_probability = guarantee
        return {
            "groups": n_groups,
            "max_losses_per_group": max_losses,
            "group_failure_probability": failure_probability,
        }

    def _build_accuracy_fields(self) -> dict[str, Any]:
        """Return the report fields about the accuracy of decoded and estimated results."""
        estimate, recovered = self._accepted_estimate, self.recovered_blocks
        if estimate is not None:
            recovered = [block_index for block_index in recovered if estimate.errors[block_index] == 0]
            errors = estimate.errors if any(estimate.errors) else ()
            return {"recovered": tuple(recovered), "errors": errors, "error_p90": estimate.error_p90}
        if not recovered:
            return {}
        decoder, verifier = self.decoder, self.verifier
        all_exact = decoder.tracker.modular and all(map(is_integer_dtype, decoder.result_dtypes()))
        return {
            "recovered": tuple(recovered),
            "amplification": 0.0 if all_exact else verifier.amplification,
            "error_bound": verifier.compute_error_bound(),
        }
