"""The codeword of a map: what it needs of its tasks, when it is over, and what its report tells of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable
from functools import cached_property, partial
from math import inf
from typing import Any, NoReturn

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.base import ErasureDecoder
from polarmap.driver.acceptance import ALL_DATA_ARRIVED, AcceptancePolicy
from polarmap.driver.collector import JobTimer
from polarmap.driver.decoding_collector import DecodingCollector, NonFiniteResultError
from polarmap.driver.failure_messages import (
    NONFINITE_TEXT,
    build_failure_exception,
    find_decisive_exception,
    format_nonfinite_message,
    format_timeout_message,
    format_too_few_results_message,
)
from polarmap.driver.options import MapOptions
from polarmap.driver.padding import PaddingAnalyzer, PaddingEffect
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.driver.task_table import TaskTable
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, NotLinearError, warn
from polarmap.executors.interface import read_only_view
from polarmap.worker.pytree import unflatten
from polarmap.worker.task_records import ResultRef

MAX_TRIALS = 4  # decodings of which it is remembered whether they are possible
PERMANENT_DECODING_ERRORS = NotLinearError, CodeError  # each ends a map whose data tasks do not all report
MAX_SETTLE_INTERVAL = 0.25  # between looks whether it is time to do without what is waited for, at most


class CodedCollector(DecodingCollector):
    """The `Collector` of a coded map: over when its results are accepted.

    Parameters
    ----------
    padding_analyzer : of the last block; None if there is none.
    driver_f : what f is on the driver.

    Attributes
    ----------
    decoding_error : NonFiniteResultError, NotLinearError, CodeError or None
        Why nothing can be decoded from these results, so that every data task has to report.
    """

    def __init__(
        self,
        padding_analyzer: PaddingAnalyzer | None,
        driver_f: Callable[[Any], Any],
        coded_data: CodedData,
        options: MapOptions,
        task_table: TaskTable,
        timer: JobTimer,
    ) -> None:
        super().__init__(driver_f, coded_data, options, task_table, timer)
        self.decoding_error: NonFiniteResultError | NotLinearError | CodeError | None = None
        # the decoding that was refused, which a further result changes
        self._refused_decoder: ErasureDecoder | None = None
        self.padding_analyzer = padding_analyzer
        if padding_analyzer is not None:
            padding_analyzer.start_trial_evaluation()
        # the task of the block that is filled up, when the others were determined
        self._waited_for_padded_block = False
        self._earlier_encode_seconds = coded_data.encode_seconds  # by other maps of the same blocks
        self._has_warned_of_parity = False
        self._trial_cache: dict[Any, bool] = {}  # of what decodings were tried, and whether they are possible

    def try_finish(self) -> bool:
        """Whether the map is over, after another look at the results."""
        # known when blocks have been encoded
        if self.coded_data.parity_warning and not self._has_warned_of_parity:
            self._has_warned_of_parity = True
            warn(self.coded_data.parity_warning)
        if self._should_accept_ill_conditioned_decoding():
            self.accept_ill_conditioned_decoding()
        self.verification = self.verification or self._verify_results()
        if self.verification is None or not self._has_padded_block_result():
            return False
        self.warn_if_ill_conditioned()
        return True

    def warn_if_ill_conditioned(self) -> None:
        """Say that results are not what `get_rtol` asks for."""
        if self.is_ill_conditioned:
            warn(
                "what arrived determines the other results, but no more accurately than to "
                f"{self.acceptance_policy.compute_error_bound():.2g} (relative), which is more than rtol: "
                "no further result came"
            )

    def _verify_results(self) -> str | None:
        """How the results were verified, once they are determined and that is settled.

        Results that contradict each other, or do not determine an integer, are looked at again with every
        further one: it may tell who is to blame, or determine the integer.
        """
        if not self.results:
            return None
        tracker = self.tracker
        if len(tracker.missing_indices) and self.has_all_data_results(self.results):
            return self._accept_unpadded_data_results()
        if (
            isinstance(self.decoding_error, PERMANENT_DECODING_ERRORS)
            and self._refused_decoder is not tracker.decoder
        ):
            self.decoding_error = None
        if not tracker.is_ready or (self.decoding_error is not None and len(tracker.missing_indices)):
            return None
        try:
            verification = (
                self.acceptance_policy.try_verify_results()
                if len(tracker.missing_indices)
                else self._accept_all_data_results()
            )
            if verification is not None:
                self.decode_results()
            return verification
        except NonFiniteResultError as error:
            if not len(tracker.code.systematic_indices):  # no more results would help
                raise NotDecodableError("results contain NaN or inf, so nothing can be decoded") from error
            self.decoding_error = error
        except NotLinearError as error:
            if (
                not len(tracker.code.systematic_indices)
                or self.options.traits.meets_requirement
                or self.options.verify is True
            ):
                raise
            self.decoding_error, self._refused_decoder = error, self.tracker.decoder
        except CodeError as error:  # parity of integers that wraps does not determine what is missing
            if not (len(self.tracker.missing_indices) and len(tracker.code.systematic_indices)):
                raise
            self.decoding_error, self._refused_decoder = error, self.tracker.decoder
        return None

    def _accept_all_data_results(self) -> str | None:
        """Every data task reported: nothing has to be decoded, whatever f is.

        On first use one parity equation is looked at all the same: better a warning now than an error
        when a worker is missing.
        """
        if self.decoding_error is not None:
            self.n_needed = self.tracker.n_arrived
        must_check_parity = self.must_verify_results or (
            "acceptance_policy" in vars(self) and self.acceptance_policy.is_violated
        )
        if must_check_parity and not isinstance(self.decoding_error, NonFiniteResultError):
            try:
                if not self.acceptance_policy.confirm_decodability():
                    return None
            except NotLinearError as error:
                if self.options.verify is True:
                    raise
                warn(f"{ALL_DATA_ARRIVED}, but {error}")
            except NonFiniteResultError as error:
                self.decoding_error = error
        return "not needed"

    def _accept_unpadded_data_results(self) -> str:
        """Take the results of all data tasks, of which one has no result of its block with rows of zeros."""
        outcomes = map(self.results.get, range(self._code.n_targets))
        self.decoded_results = [getattr(outcome, "leaves", []) for outcome in outcomes]
        if self.options.verify is True:
            warn("f could not be verified: it raised an exception, or gave another shape, of rows of zeros")
        return "not needed"

    @cached_property
    def acceptance_policy(self) -> AcceptancePolicy:
        """What checks results: made when it is asked for, as a map that decodes nothing needs none."""
        # Without a circle: the blocks are to be gone as soon as their map is over.
        return AcceptancePolicy(weakref.proxy(self))

    # -- the block that rows of zeros fill up -----------------------------------------------

    @property
    def padding_effects(self) -> tuple[PaddingEffect, ...]:
        """What rows of zeros do to each array of the results; nothing where there are none."""
        if self.padding_analyzer is None:
            return ()
        result = self._any_result
        ref = result.result_ref
        shapes = result.leaf_shapes if ref is None else [shape for _, shape in ref.layout]
        return self.padding_analyzer.get_padding_effects(self.get_accuracy_limiting_dtype, shapes)

    def _has_padded_block_result(self) -> bool:
        """Return whether the result of the block that is filled up is here, or can be decoded.

        CodeError if it can be neither.
        """
        padding_analyzer = self.padding_analyzer
        if padding_analyzer is None or self.unpadded_result is not None:
            return True
        if not padding_analyzer.is_trial_wait_over(self.timer.elapsed_seconds, self.redundancy_wait_seconds):
            return False
        effects = self.padding_effects
        padding_analyzer.raise_if_padding_undecodable(effects)
        if PaddingEffect.CHANGES_RESULT not in effects:
            return True
        self._waited_for_padded_block = True
        return False

    @property
    def awaited_task(self) -> int | None:
        """The task of the block that is filled up, if only its result is missing, which cannot be decoded."""
        padding_analyzer = self.padding_analyzer
        if padding_analyzer is None or self.unpadded_result is not None:
            return None
        if not padding_analyzer.is_evaluated_unpadded:
            return None
        if self.ready_at is None or (self.decoding_error is not None and self.verification is None):
            return None
        if not padding_analyzer.is_trial_wait_over(self.timer.elapsed_seconds, self.redundancy_wait_seconds):
            return None
        return padding_analyzer.task_index if PaddingEffect.CHANGES_RESULT in self.padding_effects else None

    def choose_tasks_to_retry(self, failed_tasks: Collection[int]) -> Collection[int]:
        """Return which failed tasks may be started again: the awaited one alone, if there is one."""
        awaited_task = self.awaited_task
        if awaited_task is None:
            return failed_tasks
        return [awaited_task] if awaited_task in failed_tasks else []

    def _raise_padded_block_missing(self, task_index: int) -> NoReturn:
        """Raise what f raised of the rows of that block, or that its task was lost too often."""
        padding_analyzer = self.padding_analyzer
        assert padding_analyzer is not None
        failure = self.task_table[task_index].last_failure
        label = f"task {task_index} of {self._code.n}: {padding_analyzer.padded_block_description}"
        if failure is not None and failure.kind == "raised":
            raise build_failure_exception(label, failure)
        self.raise_with_cause(
            NotDecodableError(
                f"{label}. Rows of zeros change the result of f, so this one cannot be decoded, and its task "
                f"failed: {failure}. Raise retries=, or {padding_analyzer.block_count_advice.lower()}"
            )
        )

    def _build_padded_block_result(
        self, leaves: list[Array], transform: Callable[[Array], Array] | None = None
    ) -> Any:
        """Return the result of the block that is filled up; `leaves`: those of its result with padding."""
        if self.unpadded_result is not None:
            unpadded_leaves = self.unpadded_result.leaves
            if transform is not None:
                unpadded_leaves = list(map(transform, unpadded_leaves))
            return unflatten(self.unpadded_result.structure, unpadded_leaves)
        padding_analyzer = self.padding_analyzer
        assert padding_analyzer is not None
        return unflatten(self.result_structure, padding_analyzer.trim_padding(leaves, self.padding_effects))

    def _find_unchecked_results(self) -> tuple[int, ...]:
        """Return the results that no check involves, among them that without padding if none does."""
        unchecked, padding_analyzer = self.acceptance_policy.find_unchecked_results(), self.padding_analyzer
        if padding_analyzer is None or self.unpadded_result is None:
            return unchecked
        if padding_analyzer.task_index in unchecked:
            return unchecked
        padded_outcome = self.results.get(padding_analyzer.task_index)
        is_checked = padded_outcome is not None and padding_analyzer.is_unpadded_result_consistent(
            self.get_accuracy_limiting_dtype,
            padded_outcome.leaves,
            self.unpadded_result.leaves,
            self.padding_effects,
        )
        return unchecked if is_checked else tuple(sorted({*unchecked, padding_analyzer.task_index}))

    def _describe_padded_block_source(self) -> str:
        """Return the field of the report that tells it."""
        if self.padding_analyzer is None:
            return ""
        if self.unpadded_result is not None:
            return "awaited" if self._waited_for_padded_block else "own rows"
        if PaddingEffect.CHANGES_RESULT in self.padding_effects:
            return "estimated"
        return "rows cut off" if PaddingEffect.ROWWISE in self.padding_effects else "zeros ignored"

    def _record_padding_effects(self) -> None:
        """Remember what rows of zeros do to f."""
        if self.padding_analyzer is not None:
            outcome = self.results.get(self.padding_analyzer.task_index)
            self.padding_analyzer.record_padding_effects(
                self.get_accuracy_limiting_dtype, outcome and outcome.leaves, self.unpadded_result
            )

    # ---------------------------------------------------------------------------------------

    @property
    def result_refs(self) -> dict[int, ResultRef]:
        """Where those results lie that stayed in storage, of which what is received are samples."""
        return {
            task_index: outcome.result_ref
            for task_index, outcome in self.results.items()
            if outcome.result_ref is not None
        }

    # -- before all is there ----------------------------------------------------------------

    def make_early_result_getter(self, task_index: int) -> Callable[[], Any] | None:
        """The result of a data block, as its worker returned it; None if it is none, or may have padding.

        It may be decoded from still: nobody is to write to it.
        """
        outcome, k = self.results.get(task_index), len(self._code.systematic_indices)
        if self.unpadded_result is not None and task_index == k - 1:
            return lambda: self._build_padded_block_result([], read_only_view)
        if (
            outcome is None
            or task_index >= k
            or (self.coded_data.data_blocks.n_padding_rows and task_index == k - 1)
        ):
            return None
        structure, leaves = outcome.structure, outcome.leaves
        return None if outcome.result_ref else lambda: unflatten(structure, list(map(read_only_view, leaves)))

    @cached_property
    def block_results(self) -> list[Any]:
        """The accepted results of the data blocks, as the caller of the map gets them."""
        return self.unflatten_blocks(self.decoded_results)

    def build_result(self, report: LazyReport) -> CodedResult[Any]:
        """Return the accepted results with the report of the map."""
        return CodedResult(self.block_results, report)

    def iterate_accepted_results(self) -> Iterable[tuple[int, Callable[[], Any]]]:
        """Yield those that arrived in the order of their arrival, then those that were decoded."""
        if self.result_refs:  # samples of results that are in storage
            return
        arrived_at = self.task_table.arrived
        indices = range(len(self.decoded_results))
        for block_index in sorted(indices, key=lambda index: arrived_at.get(index, inf)):
            yield block_index, partial(self.block_results.__getitem__, block_index)

    def unflatten_blocks(
        self, block_leaves: list[list[Array]], transform: Callable[[Array], Array] | None = None
    ) -> list[Any]:
        """Return the results of data blocks without padding, made of the `transform` of their leaves."""
        structure = self.result_structure
        if transform is not None:
            block_leaves = [list(map(transform, leaves)) for leaves in block_leaves]
        n_full_blocks = None if self.padding_analyzer is None else self.padding_analyzer.task_index
        block_results = [unflatten(structure, leaves) for leaves in block_leaves[:n_full_blocks]]
        if self.padding_analyzer is not None:
            block_results.append(self._build_padded_block_result(block_leaves[-1], transform))
        return block_results

    @property
    def has_finite_results(self) -> bool:
        """Whether every data task reported, or nothing received is NaN or inf."""
        if isinstance(self.decoding_error, NonFiniteResultError):
            return False
        if self.has_all_data_results(self.results):
            return True
        leaves = (leaf for outcome in self.results.values() for leaf in outcome.leaves)
        return all(leaf.dtype.kind not in "fc" or bool(np.isfinite(leaf).all()) for leaf in leaves)

    # -- what the report tells --------------------------------------------------------------

    @property
    def unneeded_tasks(self) -> list[int]:
        """Tasks whose results nothing was decoded from, but for those of data blocks."""
        code, tracker = self._code, self.tracker
        used_mask = tracker.arrived_mask if len(tracker.missing_indices) else np.zeros(code.n, bool)
        return [task for task in range(len(code.systematic_indices), code.n) if not used_mask[task]]

    def build_accuracy_fields(self) -> dict[str, Any]:
        """Fields of the report: which results were decoded, and how accurately."""
        recovered = self.recovered_blocks
        if not recovered:
            return {}
        all_exact = self.tracker.modular and all(map(is_integer_dtype, self.result_dtypes()))
        return {
            "recovered": tuple(recovered),
            "amplification": 0.0 if all_exact else self.acceptance_policy.amplification,
            "error_bound": self.acceptance_policy.compute_error_bound(),
        }

    @property
    def recovered_blocks(self) -> list[int]:
        """The data blocks whose results are not those of their tasks."""
        missing_blocks: list[int] = self.tracker.missing_indices.tolist()
        padded_index = None if self.unpadded_result is None else len(self._code.systematic_indices) - 1
        return [block_index for block_index in missing_blocks if block_index != padded_index]

    def build_report_fields(self, elapsed_seconds: float) -> dict[str, Any]:
        """Fields of the report of a map that was over in second `elapsed_seconds`."""
        wait_seconds, is_checked = 0.0, self.verification in ("parity", "local")
        if self.verification not in ("not needed", "no"):
            wait_seconds = max(0.0, elapsed_seconds - (self.ready_at or 0.0) - self.decode_seconds)
        self._record_padding_effects()
        return {
            "needed": self.n_needed,
            "encode_seconds": self.coded_data.encode_seconds - self._earlier_encode_seconds,
            "decode_seconds": self.decode_seconds,
            "redundancy_wait_seconds": wait_seconds,
            "residual": self.acceptance_policy.max_residual if "acceptance_policy" in vars(self) else None,
            "verified": str(self.verification),
            "unchecked": self._find_unchecked_results() if is_checked else (),
            "last_block": self._describe_padded_block_source(),
            "evaluated_locally": tuple(self.evaluated_locally),
            **self.build_accuracy_fields(),
        }

    # -- what the schedule asks -------------------------------------------------------------

    @property
    def recovery_threshold(self) -> int:
        """How many results determine the rest at the least."""
        return self._code.recovery_threshold

    @property
    def has_sufficient_results(self) -> bool:
        """Whether no more results are needed."""
        is_decodable = self.ready_at is not None and self.decoding_error is None
        return (self.verification is not None or is_decodable) and self.awaited_task is None

    @property
    def can_use_parity(self) -> bool:
        """Whether parity helps: not where nothing can be decoded."""
        return self.decoding_error is None

    def would_suffice(self, task_indices: Collection[int], within_rtol: bool = True) -> bool:
        """Whether results of these tasks would determine the rest; `within_rtol`: as well as is asked for.

        Where nothing can be decoded every data task has to report.
        """
        if self.decoding_error is not None:
            return self.has_all_data_results(task_indices)
        if not self.results or len(task_indices) < self.recovery_threshold:
            return len(task_indices) >= self.recovery_threshold or self.has_all_data_results(task_indices)
        max_amplification = self.tracker.max_amplification if within_rtol else inf
        cache_key = frozenset(task_indices), self.tracker.modular, max_amplification
        if cache_key not in self._trial_cache:  # a trial costs as much as decoding
            if len(self._trial_cache) >= MAX_TRIALS:
                self._trial_cache.clear()
            modular = self.tracker.modular
            trial = ArrivalTracker(self._code, modular=modular, max_amplification=max_amplification)
            for task_index in task_indices:
                trial.add(task_index)
            self._trial_cache[cache_key] = trial.is_ready
        return self._trial_cache[cache_key]

    def can_pending_tasks_suffice(self, within_rtol: bool = True) -> bool:
        """Whether what arrived, still runs or is held back would do.

        Results that look odd now may turn out to be the usual ones.
        """
        awaited_task = self.awaited_task
        if awaited_task is not None:
            return awaited_task in self.task_table.pending_tasks
        pending = self.task_table.pending_tasks | self.task_table.held_back
        candidate_sets = [
            pending | candidates.keys() for candidates in self._results_by_signature.values()
        ] or [pending]
        return any(self.would_suffice(candidates, within_rtol) for candidates in candidate_sets)

    def poll_interval(self) -> float:
        """Often once f may run here, or what is determined is inaccurate; at first more often.

        Not where results contradict each other: another one alone tells more.
        """
        decodable_at = self.decodable_at if self.ready_at is None else self.ready_at
        if decodable_at is None or (self.decoding_error is not None and len(self.tracker.missing_indices)):
            return inf
        return min(max(0.02, (self.timer.elapsed_seconds - decodable_at) / 20), MAX_SETTLE_INTERVAL)

    def on_tasks_exhausted(self) -> None:
        """Decode what arrived as accurately as it can be, or say that it does not tell enough."""
        if (awaited_task := self.awaited_task) is not None:
            self._raise_padded_block_missing(awaited_task)
        if self.try_accept_ill_conditioned_decoding():
            return
        error = find_decisive_exception(self.task_table, self.would_suffice)
        if error is not None and self.decoding_error is None:
            raise error
        message = format_too_few_results_message(self.task_table, self.recovery_threshold)
        if self.decoding_error is not None:
            message = format_nonfinite_message(self.task_table, self.recovery_threshold, self.n_data_results)
        self.raise_with_cause(NotDecodableError(message))

    def try_accept_ill_conditioned_decoding(self) -> bool:
        """Whether what arrived determines the rest at some accuracy, at which it is taken, or still may."""
        can_improve = self.task_table.pending_tasks and self.can_pending_tasks_suffice(within_rtol=False)
        return bool(can_improve) or (self.decoding_error is None and self.accept_ill_conditioned_decoding())

    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """Raise CodedTimeoutError, which tells what was missing."""
        reason = ""
        if self.awaited_task is not None and self.padding_analyzer is not None:
            reason = (
                f"; task {self.padding_analyzer.task_index} has to return, "
                f"as {self.padding_analyzer.padded_block_description}"
            )
        elif not self.can_use_parity:
            reason = f"; results contain {NONFINITE_TEXT}"
        elif self.ready_at is not None:
            reason = (
                "; they determine the rest, but f could not be verified in time (verify=False skips that)"
            )
        elif len(self.results) >= self.recovery_threshold:
            reason = "; they do not determine the rest, or not as accurately as rtol asks for"
        message = format_timeout_message(
            self.task_table, self.recovery_threshold, self.timer.timeout, reason, n_receiving_workers
        )
        self.raise_with_cause(CodedTimeoutError(message))

    def raise_with_cause(self, error: Exception) -> NoReturn:
        """Raise this error, or the refusal to decode results that would have been enough otherwise."""
        if isinstance(self.decoding_error, PERMANENT_DECODING_ERRORS):
            error = self.decoding_error
        raise error from self.task_table.first_exception

    def _should_accept_ill_conditioned_decoding(self) -> bool:
        """Whether no result that would make decoding more accurate is worth waiting for any longer."""
        if self.decodable_at is None or self.has_sufficient_results or self.decoding_error is not None:
            return False
        return self.timer.elapsed_seconds - self.decodable_at > self.max_wait_seconds
