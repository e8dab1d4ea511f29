"""Estimate the results that have not arrived, at the deadline of a map or while it runs.

The estimates are linear predictions from the results that have arrived, with an expected error for each
block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from math import inf, isinf
from typing import Any, NamedTuple

import numpy as np

from polarmap.codes import modular_linalg
from polarmap.codes.block_prediction import MissingBlockPredictor, make_missing_block_predictor
from polarmap.codes.error_detection import estimate_relative_rounding_error
from polarmap.codes.linear_code import LinearCode
from polarmap.driver.padded_block import PaddedBlock
from polarmap.driver.padding import PaddingEffect
from polarmap.driver.received_results import get_leaf_types
from polarmap.driver.result_decoder import ResultDecoder
from polarmap.driver.wraparound import undo_wraparound
from polarmap.dtypes import Array, DType, Floats, Indices, Mask, is_integer_dtype, machine_epsilon
from polarmap.errors import CodeError, warn


class Estimate(NamedTuple):
    """The results of all k data blocks, some of them estimated, with their expected relative errors.

    Attributes
    ----------
    block_leaves : list of lists of arrays
        The arrays (leaves) of each result.
    errors : tuple of float
        The expected relative error of each result: 0.0 if the result is exact, inf if the error is unknown.
    error_p90 : float
        The 90th percentile of the overall relative error of the results over random orders of arrival.
    """

    block_leaves: list[list[Array]]
    errors: tuple[float, ...]
    error_p90: float

    def with_unknown_errors(self, block_indices: Collection[int]) -> Estimate:
        """Return a copy in which the errors of these blocks are inf (unknown)."""
        errors = tuple(
            inf if block_index in block_indices else error for block_index, error in enumerate(self.errors)
        )
        return self._replace(errors=errors, error_p90=max(errors))

    def with_padded_block(self, padded_block: PaddedBlock | None) -> Estimate:
        """Return a copy with the correct error for the block that is padded with zero rows, if there is one.

        The error is 0 once the block's task has returned. It is inf (unknown) if zero-padding changes the
        result of the mapped function.
        """
        if padded_block is None:
            return self
        errors, error_p90 = list(self.errors), self.error_p90
        if padded_block.has_unpadded_result:
            errors[padded_block.task_index] = 0.0
        elif PaddingEffect.CHANGES_RESULT in padded_block.effects:
            errors[padded_block.task_index] = error_p90 = inf
        return self._replace(errors=tuple(errors), error_p90=error_p90)


def estimate_missing_results(decoder: ResultDecoder) -> Estimate:
    """Estimate the missing results from the received ones, and return both.

    At least one result must have been received, and all received values must be finite. A missing result
    that the received ones determine is decoded, not estimated. The error of a result is its root mean square
    error, relative to the root mean square of the received results. If a result consists of several arrays,
    its error is the largest error of these arrays.

    Raises CodeError if the mapped function turns integers into floats and the integers in parity blocks may
    overflow, because results of parity blocks cannot be used then.
    """
    code, received_results = decoder.coded_data.code, decoder.received
    arrived_mask = np.isin(np.arange(code.n), list(received_results.by_task))
    dtypes, leaf_types = decoder.result_dtypes(), get_leaf_types(received_results.structure)
    precision = max(
        machine_epsilon(
            np.dtype(float)
            if is_integer_dtype(result_dtype)
            else decoder.get_accuracy_limiting_dtype(result_dtype)
        )
        for result_dtype in dtypes
    )
    if not arrived_mask[: code.k].all() and decoder.undecodable_reason:
        raise CodeError(f"a result is missing and cannot be estimated: {decoder.undecodable_reason}")
    groups = [
        _GroupPredictor.create(group_code, block_indices, arrived_mask, precision)
        for group_code, block_indices in code.split_into_groups()
    ]
    missing_indices = np.concatenate([group.missing_indices for group in groups])
    errors, error_p90 = np.zeros(code.k), 0.0
    estimated_leaves: list[list[Array]] = []
    for leaf_index, (dtype, leaf_type) in enumerate(zip(dtypes, leaf_types)):
        flat_results = received_results.get_flat_leaves_by_task(leaf_index)
        estimates = [group.estimate_leaf(decoder, flat_results, dtype, leaf_type) for group in groups]
        estimated_leaves.append([block for estimate in estimates for block in estimate.blocks])
        expected_errors = np.concatenate([estimate.errors for estimate in estimates])
        errors[missing_indices] = np.maximum(errors[missing_indices], expected_errors)
        joint_error = float(np.linalg.norm(expected_errors)) / float(np.sqrt(code.k))
        error_p90 = max(error_p90, joint_error and joint_error * max(map(_get_p90_ratio, estimates)))
    return Estimate(
        decoder.merge_recovered_blocks(missing_indices, estimated_leaves), tuple(errors.tolist()), error_p90
    )


class _LeafEstimate(NamedTuple):
    """The estimated missing results of a group of blocks, for one of the arrays (leaves) of each result.

    Attributes
    ----------
    blocks : list of arrays
        One flat array for each missing result.
    errors : array (missing,)
        The expected relative error of each missing result.
    p90_ratio : float
        The 90th percentile of the ratio of the true error to the expected error.
    """

    blocks: list[Array]
    errors: Floats
    p90_ratio: float


def _get_p90_ratio(estimate: _LeafEstimate) -> float:
    return estimate.p90_ratio if estimate.errors.any() else 0.0


class _GroupPredictor(NamedTuple):
    """Estimates the missing results of one group of blocks. For most codes, all blocks form one group.

    Attributes
    ----------
    code : LinearCode
        The code of the group.
    block_indices : index array
        The coded blocks of the group, in the order of its code.
    predictor : MissingBlockPredictor or None
        Predicts the missing results from the received results of the group. None if none has arrived.
    missing_indices : index array
        The data blocks of the group that have not arrived.
    """

    code: LinearCode
    block_indices: Indices
    predictor: MissingBlockPredictor | None
    missing_indices: Indices

    @classmethod
    def create(
        cls, code: LinearCode, block_indices: Indices, arrived_mask: Mask, precision: float
    ) -> _GroupPredictor:
        """Build the predictor of a group. `arrived_mask` is True for the coded blocks that have arrived."""
        group_mask = arrived_mask[block_indices]
        missing_indices = block_indices[: code.k][~group_mask[: code.k]]
        predictor = None
        if group_mask.any():
            predictor = make_missing_block_predictor(code, group_mask, precision)
        return cls(code, block_indices, predictor, missing_indices)

    def estimate_leaf(
        self, decoder: ResultDecoder, flat_results: Mapping[int, Array], dtype: DType, leaf_type: str
    ) -> _LeafEstimate:
        """Estimate one array (leaf) of the missing results.

        `flat_results` maps each task to this array of its received result, flattened to one dimension.
        """
        code, predictor = self.code, self.predictor
        is_integer = is_integer_dtype(dtype)
        if predictor is None:
            return self._use_mean_of_other_groups(flat_results, dtype)
        arrived_indices = self.block_indices[predictor.arrived_indices]
        received = np.stack([flat_results[task_index] for task_index in arrived_indices.tolist()])
        predictions = predictor.weights @ received.astype(np.complex128 if dtype.kind == "c" else np.float64)
        expected_errors = _compute_expected_errors(decoder, predictor, received, dtype)
        blocks = list(_round_to_dtype(predictions, dtype) if is_integer else predictions.astype(dtype))
        if is_integer and code.supports_integers:
            group_results = dict(zip(predictor.arrived_indices.tolist(), received))
            modular_blocks = _decode_modular(code, predictor, group_results, dtype)
            expected_errors = [
                0.0 if missing_row in modular_blocks else error or np.inf
                for missing_row, error in enumerate(expected_errors)
            ]
            for missing_row, block in modular_blocks.items():
                if leaf_type == "python":
                    weights = predictor.weights[missing_row : missing_row + 1]
                    [block] = undo_wraparound(
                        decoder.coded_data, flat_results, arrived_indices, weights, block[None]
                    )
                blocks[missing_row] = block
        p90_ratio = 0.0
        if any(expected_errors):
            p90_ratio = predictor.estimate_error_to_std_ratio_p90(_to_normalized_reals(received))
        return _LeafEstimate(blocks, np.array(expected_errors, np.float64), p90_ratio)

    def _use_mean_of_other_groups(self, flat_results: Mapping[int, Array], dtype: DType) -> _LeafEstimate:
        """Estimate each missing result by the mean of the received results. The error is inf (unknown).

        Used if no result of this group of blocks has arrived.
        """
        mean = np.mean(np.stack(list(flat_results.values())), axis=0)[np.newaxis]
        [block] = _round_to_dtype(mean, dtype) if is_integer_dtype(dtype) else mean.astype(dtype)
        n_missing = len(self.missing_indices)
        return _LeafEstimate([block] * n_missing, np.full(n_missing, np.inf), inf)


def _compute_expected_errors(
    decoder: ResultDecoder, predictor: MissingBlockPredictor, received: Array, dtype: DType
) -> list[float]:
    """Return the expected relative error of each missing block.

    The error is 0.0 if a block can be decoded as accurately as `rtol` requires.
    """
    rounding_errors = np.linalg.norm(predictor.weights, axis=1)
    if is_integer_dtype(dtype):  # Rounding to integers adds errors of up to 1.
        rounding_errors /= float(np.abs(received).max(initial=0)) or 1.0
    else:
        rounding_errors *= machine_epsilon(decoder.get_accuracy_limiting_dtype(dtype))
        rounding_errors[rounding_errors <= decoder.get_rtol(dtype)] = 0.0
    relative_scatter = _compute_relative_scatter(predictor, received)
    if relative_scatter <= estimate_relative_rounding_error(decoder.get_accuracy_limiting_dtype(dtype)):
        relative_scatter = np.inf  # The results differ only by rounding, so the error is unknown.
    expected_errors: list[float] = np.multiply(
        predictor.error_stds, relative_scatter, out=rounding_errors, where=predictor.error_stds > 0
    ).tolist()
    return expected_errors


def _compute_relative_scatter(predictor: MissingBlockPredictor, received: Array) -> float:
    """Return how much the received results differ, as an input of error estimates.

    This is the standard deviation between the results, divided by their root mean square.
    """
    reals = _to_normalized_reals(received)
    root_mean_square = float(np.sqrt(np.mean(reals**2))) if reals.size else 0.0
    return predictor.compute_block_std(reals) / root_mean_square if root_mean_square > 0 else 0.0


def _to_normalized_reals(received: Array) -> Array:
    """Return blocks as real numbers scaled to at most 1, so that squares neither overflow nor underflow."""
    reals = np.concatenate([received.real, received.imag], axis=1).astype(np.float64)
    return np.asarray(reals / (np.abs(reals).max(initial=0.0) or 1.0))


def _round_to_dtype(values: Array, dtype: DType) -> Array:
    """Return `values` rounded to integers, and clipped to the range of `dtype`."""
    min_value, max_value = np.iinfo(dtype).min, np.iinfo(dtype).max
    clipped = np.clip(
        np.rint(values), np.nextafter(float(min_value), 0.0), np.nextafter(float(max_value), 0.0)
    )
    rounded = clipped.astype(dtype)
    rounded[values >= float(max_value)], rounded[values <= float(min_value)] = max_value, min_value
    return rounded


def _decode_modular(
    code: LinearCode, predictor: MissingBlockPredictor, received: dict[int, Array], dtype: DType
) -> dict[int, Array]:
    """Decode those missing integer blocks that the received results determine, in arithmetic modulo 2^64.

    Returns a dict that maps the position of each decoded block in `predictor.missing_indices` to its values.
    """
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


# --- at a deadline -----------------------------------------------------------------------------


class DeadlineEstimator:
    """Estimates the results that are missing at the deadline of a coded map, instead of letting it fail."""

    def estimate(
        self, decoder: ResultDecoder, padded_block: PaddedBlock | None, is_accepted: bool
    ) -> Estimate:
        """Return the results of all data blocks, with estimates in place of missing ones.

        Warns if the estimate for a zero-padded block may be far off.

        Parameters
        ----------
        decoder : ResultDecoder
            Has at least one received result, and all received values are finite.
        padded_block : PaddedBlock or None
            The last block if it is zero-padded, else None.
        is_accepted : bool
            Whether all other results have been received or decoded, and have been accepted.
        """
        if is_accepted:
            exact_results = decoder.decoded_results
            estimate = Estimate(exact_results, (0.0,) * len(exact_results), 0.0)
        else:
            estimate = estimate_missing_results(decoder)
        if padded_block is None:
            return estimate
        padded_block.wait_for_effects()
        estimate = estimate.with_padded_block(padded_block)
        if isinf(estimate.errors[padded_block.task_index]):
            warn(
                f"{padded_block.analyzer.padded_block_description}; its task has not returned in time, and "
                "rows of zeros change the result of f, so its estimate may be far off. "
                f"{padded_block.analyzer.block_count_advice}"
            )
        return estimate


# --- for other threads -------------------------------------------------------------------------


class EstimateSnapshot(NamedTuple):
    """An estimate and the number of received results that it is based on."""

    n_arrived: int
    result: Any


class EstimateStream:
    """Passes the latest estimate from the thread that runs a map to the threads waiting for it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._n_waiting = 0
        self._latest: EstimateSnapshot | None = None
        self._is_closed = False

    def publish_estimate_if_awaited(self, n_arrived: int, build_estimate: Callable[[], Any]) -> None:
        """Build and publish an estimate if a thread is waiting for one and new results have arrived."""
        with self._condition:
            is_new = self._latest is None or self._latest.n_arrived != n_arrived
            is_awaited = self._n_waiting > 0 and is_new
        if is_awaited and (estimate := build_estimate()) is not None:
            with self._condition:
                self._latest = EstimateSnapshot(n_arrived, estimate)
                self._condition.notify_all()

    def close(self) -> None:
        """Wake all waiting threads, because no more estimates will be published."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def wait_for_next_estimate(self, n_seen: int, wake: Callable[[], None]) -> EstimateSnapshot | None:
        """Block until a new estimate is published, and return it. Return None once the map is over.

        An estimate is new if it is based on a number of results other than `n_seen`.

        Parameters
        ----------
        n_seen : int
            The number of results on which the caller's last estimate was based, or 0.
        wake : callable
            Called with no arguments to wake the map's thread.
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
