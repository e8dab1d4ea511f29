"""Before all is there: results of all data blocks, those that are not determined as estimates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, isinf
from typing import Any, NamedTuple

import numpy as np

from polarmap.codes import modular_linalg
from polarmap.codes.block_prediction import MissingBlockPredictor, make_missing_block_predictor
from polarmap.codes.error_detection import estimate_relative_rounding_error
from polarmap.codes.polar import PolarCode
from polarmap.driver.coded_collector import CodedCollector
from polarmap.driver.collector import Collector
from polarmap.driver.decoding_collector import DecodingCollector, get_leaf_types
from polarmap.driver.failure_messages import format_nonfinite_message
from polarmap.driver.padding import PaddingEffect
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.driver.wraparound import undo_wraparound
from polarmap.dtypes import Array, DType, is_integer_dtype, machine_epsilon
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, warn
from polarmap.executors.interface import read_only_view
from polarmap.report import Report


class Estimate(NamedTuple):
    """Flat results of the k data tasks, and the relative error to expect of each.

    errors : 0.0 for exact ones, and inf where nothing tells how large it may be.
    error_p90 : what that of all results together stays below in nine of ten orders of arrival.
    """

    block_leaves: list[list[Array]]
    errors: tuple[float, ...]
    error_p90: float


def estimate_missing_results(collector: DecodingCollector) -> Estimate:
    """Estimates from what arrived, which must be finite and not nothing.

    Errors are root mean squares over the entries of a block, in relation to that of the results that
    arrived; the largest of its leaves. What the equations determine is decoded: integers exactly.
    """
    code = collector.coded_data.code
    assert isinstance(code, PolarCode)  # checked before the map began, or by the future that asks
    arrived_mask = np.isin(np.arange(code.n), list(collector.results))
    dtypes, leaf_types = collector.result_dtypes(), get_leaf_types(collector.result_structure)
    precision = max(
        machine_epsilon(
            np.dtype(float)
            if is_integer_dtype(result_dtype)
            else collector.get_accuracy_limiting_dtype(result_dtype)
        )
        for result_dtype in dtypes
    )
    predictor = make_missing_block_predictor(code, arrived_mask, precision)
    if len(predictor.missing_indices) and collector.undecodable_reason:
        raise CodeError(f"a result is missing and cannot be estimated: {collector.undecodable_reason}")
    errors, error_p90 = np.zeros(code.k), 0.0
    estimated_leaves: list[list[Array]] = []
    for leaf_index, (dtype, leaf_type) in enumerate(zip(dtypes, leaf_types)):
        flat_results = collector.get_flat_results_by_task(leaf_index)
        received = np.stack([flat_results[int(task_index)] for task_index in predictor.arrived_indices])
        predictions = predictor.weights @ received.astype(np.complex128 if dtype.kind == "c" else np.float64)
        expected_errors = _compute_expected_errors(collector, predictor, received, dtype)
        blocks = list(
            _round_to_dtype(predictions, dtype) if is_integer_dtype(dtype) else predictions.astype(dtype)
        )
        if is_integer_dtype(dtype) and code.supports_integers:
            modular_blocks = _decode_modular(code, predictor, flat_results, dtype)
            expected_errors = [
                0.0 if missing_row in modular_blocks else error or np.inf
                for missing_row, error in enumerate(expected_errors)
            ]
            for missing_row, block in modular_blocks.items():
                if leaf_type == "python":
                    weights = predictor.weights[missing_row : missing_row + 1]
                    [block] = undo_wraparound(
                        collector.coded_data, flat_results, predictor.arrived_indices, weights, block[None]
                    )
                blocks[missing_row] = block
        estimated_leaves.append(blocks)
        errors[predictor.missing_indices] = np.maximum(errors[predictor.missing_indices], expected_errors)
        error_p90 = max(error_p90, _compute_error_p90(predictor, received, expected_errors, code.k))
    return Estimate(
        collector.merge_recovered_blocks(predictor.missing_indices, estimated_leaves),
        tuple(errors.tolist()),
        error_p90,
    )


def _compute_error_p90(
    predictor: MissingBlockPredictor, received: Array, expected_errors: list[float], k: int
) -> float:
    """The relative error of all k blocks together that nine in ten orders stay below."""
    joint_error = float(np.linalg.norm(expected_errors)) / float(np.sqrt(k))
    return joint_error and joint_error * predictor.estimate_error_to_std_ratio_p90(
        _to_normalized_reals(received)
    )


def _compute_expected_errors(
    collector: DecodingCollector, predictor: MissingBlockPredictor, received: Array, dtype: DType
) -> list[float]:
    """The relative error to expect of each missing block; 0.0 for what is determined within rtol."""
    rounding_errors = np.linalg.norm(predictor.weights, axis=1)
    if is_integer_dtype(dtype):  # made of floats: rounded to one
        rounding_errors /= float(np.abs(received).max(initial=0)) or 1.0
    else:
        rounding_errors *= machine_epsilon(collector.get_accuracy_limiting_dtype(dtype))
        rounding_errors[rounding_errors <= collector.get_rtol(dtype)] = 0.0
    relative_scatter = _compute_relative_scatter(predictor, received)
    if relative_scatter <= estimate_relative_rounding_error(collector.get_accuracy_limiting_dtype(dtype)):
        relative_scatter = np.inf  # rounding is not scatter: nothing tells
    expected_errors: list[float] = np.multiply(
        predictor.error_stds, relative_scatter, out=rounding_errors, where=predictor.error_stds > 0
    ).tolist()
    return expected_errors


def _compute_relative_scatter(predictor: MissingBlockPredictor, received: Array) -> float:
    """The scatter of blocks around their mean, as a share of their root mean square."""
    reals = _to_normalized_reals(received)
    root_mean_square = float(np.sqrt(np.mean(reals**2))) if reals.size else 0.0
    return predictor.compute_block_std(reals) / root_mean_square if root_mean_square > 0 else 0.0


def _to_normalized_reals(received: Array) -> Array:
    """Blocks of numbers as blocks of real ones of at most 1, whose squares neither overflow nor vanish."""
    reals = np.concatenate([received.real, received.imag], axis=1).astype(np.float64)
    return np.asarray(reals / (np.abs(reals).max(initial=0.0) or 1.0))


def _round_to_dtype(values: Array, dtype: DType) -> Array:
    """Integers next to `values`, as far as `dtype` holds them."""
    min_value, max_value = np.iinfo(dtype).min, np.iinfo(dtype).max
    clipped = np.clip(
        np.rint(values), np.nextafter(float(min_value), 0.0), np.nextafter(float(max_value), 0.0)
    )
    rounded = clipped.astype(dtype)
    rounded[values >= float(max_value)], rounded[values <= float(min_value)] = max_value, min_value
    return rounded


def _decode_modular(
    code: PolarCode, predictor: MissingBlockPredictor, received: dict[int, Array], dtype: DType
) -> dict[int, Array]:
    """The missing blocks, by their place among them, that are determined modulo 2^64."""
    parity_indices = predictor.arrived_indices[predictor.arrived_indices >= code.k] - code.k
    known_indices = predictor.arrived_indices[predictor.arrived_indices < code.k]
    parity_matrix = code.encoding_matrix[np.ix_(parity_indices, predictor.missing_indices)]
    if not parity_matrix.size:
        return {}
    used_rows, solved_columns, solver = modular_linalg.find_determined_unknowns_mod64(parity_matrix)
    if not solved_columns:
        return {}
    parity_indices = parity_indices[used_rows]
    syndromes = np.stack(
        [received[int(task_index) + code.k].astype(np.int64) for task_index in parity_indices]
    ).view(np.uint64)
    if len(known_indices):
        known_data = np.stack([received[int(task_index)].astype(np.int64) for task_index in known_indices])
        syndromes = syndromes - modular_linalg.matmul_mod64(
            code.encoding_matrix[np.ix_(parity_indices, known_indices)], known_data
        )
    return dict(zip(solved_columns, modular_linalg.matmul_mod64(solver, syndromes).astype(dtype)))


# --- of a map that goes on, or is over ---------------------------------------------------------


class EstimatingCollector(CodedCollector):
    """A codeword that is over at its deadline, too: what is not determined then is estimated."""

    _accepted_estimate: Estimate | None = None

    def try_finish(self) -> bool:
        """Whether the map is over, after another look at the results."""
        if super().try_finish():
            return True
        if self.timer.remaining_seconds > 0:
            return False
        self._accept_estimates()
        self.warn_if_ill_conditioned()
        return True

    def _accept_estimates(self) -> None:
        """Accept what there is: results that are exact or estimates."""
        if not self.results:
            timeout_text = f"the timeout of {self.timer.timeout:g} s"
            self.raise_with_cause(
                CodedTimeoutError(f"no result arrived within {timeout_text}: nothing to estimate from")
            )
        if not self.has_finite_results:
            self.raise_with_cause(
                NotDecodableError(
                    format_nonfinite_message(self.task_table, self.recovery_threshold, self.n_data_results)
                )
            )
        if self.verification is not None:  # but for the block that rows of zeros fill up
            estimate = Estimate(self.decoded_results, (0.0,) * self._code.n_targets, 0.0)
        else:
            estimate = estimate_missing_results(self)
        if self.padding_analyzer is not None and self.unpadded_result is None:
            self.padding_analyzer.wait_for_padding_effects(self.local_evaluation_timeout)
        estimate = _add_padded_block_error(self, estimate)
        if self.padding_analyzer is not None and isinf(estimate.errors[self.padding_analyzer.task_index]):
            warn(
                f"{self.padding_analyzer.padded_block_description}; its task has not returned in time, and "
                "rows of zeros change the result of f, so its estimate may be far off. "
                f"{self.padding_analyzer.block_count_advice}"
            )
        if self.decoding_error is not None or self.acceptance_policy.has_contradicting_results():
            missing_blocks = set(self.tracker.missing_indices.tolist())
            errors = tuple(
                inf if block_index in missing_blocks else error
                for block_index, error in enumerate(estimate.errors)
            )
            estimate = estimate._replace(errors=errors, error_p90=max(errors))
            problem = self.decoding_error or (
                f"the parity equations are off by {self.acceptance_policy.max_residual:.2g} (relative): f is "
                "not linear, or a worker returned garbage"
            )
            warn(f"{problem}; what is decoded or estimated may be far off")
        self.decoded_results, self._accepted_estimate = estimate.block_leaves, estimate
        self.verification = self.verification or "no"
        self.n_needed = self.n_needed or len(self.task_table.arrived)

    def build_accuracy_fields(self) -> dict[str, Any]:
        """Fields of the report: which results were decoded, and what error to expect of the others."""
        estimate = self._accepted_estimate
        if estimate is None:
            return super().build_accuracy_fields()
        recovered = [
            block_index for block_index in self.recovered_blocks if estimate.errors[block_index] == 0
        ]
        errors = estimate.errors if any(estimate.errors) else ()
        return {"recovered": tuple(recovered), "errors": errors, "error_p90": estimate.error_p90}

    def on_tasks_exhausted(self) -> None:
        """Take what arrived at any accuracy, or wait for the deadline where something may be estimated."""
        if not (self.try_accept_ill_conditioned_decoding() or self.results):
            super().on_tasks_exhausted()

    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """The next look makes estimates."""


def build_interim_estimate(collector: Collector, report: Report) -> CodedResult[Any] | None:
    """What a deadline would give now, while the map goes on, with the report so far; None if nothing.

    Nothing, too, when the results are determined: they come when they have been checked.
    """
    if not isinstance(collector, CodedCollector) or not collector.results or collector.tracker.is_ready:
        return None
    if not collector.has_finite_results or collector.undecodable_reason:
        return None
    padding_analyzer = collector.padding_analyzer
    if (
        padding_analyzer is not None
        and collector.unpadded_result is None
        and not padding_analyzer.has_known_effects
    ):
        return None
    estimate = _add_padded_block_error(collector, estimate_missing_results(collector))
    errors = estimate.errors if any(estimate.errors) else ()
    build_report = partial(replace, report, errors=errors, error_p90=estimate.error_p90)
    # What has arrived may be decoded from still: nobody is to write to it.
    block_results = collector.unflatten_blocks(estimate.block_leaves, read_only_view)
    return CodedResult(block_results, LazyReport(build_report))


def _add_padded_block_error(collector: CodedCollector, estimate: Estimate) -> Estimate:
    """Return estimates with the error of the block that rows of zeros fill up.

    There is none once its task has returned. It is unknown if rows of zeros change the result of f.
    """
    if collector.padding_analyzer is None:
        return estimate
    errors, task_index = list(estimate.errors), collector.padding_analyzer.task_index
    if collector.unpadded_result is not None:
        errors[task_index] = 0.0
    elif PaddingEffect.CHANGES_RESULT in collector.padding_effects:
        errors[task_index] = inf
        estimate = estimate._replace(error_p90=inf)
    return estimate._replace(errors=tuple(errors))


# --- for whoever waits for one -----------------------------------------------------------------


class EstimateSnapshot(NamedTuple):
    """An estimate, and from how many results it was made."""

    n_arrived: int
    result: Any


class EstimateStream:
    """Hands estimates from the thread of a map to others, each of which gets the latest."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._n_waiting = 0
        self._latest: EstimateSnapshot | None = None
        self._is_closed = False

    def publish_estimate_if_awaited(self, n_arrived: int, build_estimate: Callable[[], Any]) -> None:
        """Make an estimate from so many results if somebody waits for it."""
        with self._condition:
            is_new = self._latest is None or self._latest.n_arrived != n_arrived
            is_awaited = self._n_waiting > 0 and is_new
        if is_awaited and (estimate := build_estimate()) is not None:
            with self._condition:
                self._latest = EstimateSnapshot(n_arrived, estimate)
                self._condition.notify_all()

    def close(self) -> None:
        """Tell those who wait that no more estimates will come."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def wait_for_next_estimate(self, n_seen: int, wake: Callable[[], None]) -> EstimateSnapshot | None:
        """Wait for an estimate from other than `n_seen` results; None when the map is over.

        wake : lets the map look up.
        """

        def has_next() -> bool:
            return self._is_closed or (self._latest is not None and self._latest.n_arrived != n_seen)

        with self._condition:
            self._n_waiting += 1
        wake()
        with self._condition:
            try:
                self._condition.wait_for(has_next)
            finally:
                self._n_waiting -= 1
            return None if self._is_closed else self._latest
