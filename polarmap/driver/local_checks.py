"""Check decoded results of a map by calling the mapped function f on the driver and comparing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes import error_detection
from polarmap.driver.local_evaluation import LocalEvaluation, LocalEvaluator, copy_block
from polarmap.driver.options import MapOptions
from polarmap.driver.parity_checks import ParityChecks
from polarmap.driver.received_results import get_comparable_types_and_shapes
from polarmap.driver.result_decoder import ResultDecoder
from polarmap.dtypes import Array, DType, Mask, get_default_rtol, is_integer_dtype, machine_epsilon
from polarmap.worker.pytree import flatten, unflatten

# The tolerance for decoded values is this many rounding errors of the largest value in the array, times the
# amplification (the factor by which decoding multiplies rounding errors).
DECODING_NOISE_FACTOR = 16


class LocalChecks:
    """Compares decoded results with results of local calls of the mapped function f, one block at a time.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks, one per task.
    options : MapOptions
        The options of the map.
    decoder : ResultDecoder
        Decodes the missing results.
    evaluator : LocalEvaluator
        Calls f on the driver.
    parity_checks : ParityChecks
        Provides the magnitudes relative to which rounding errors are judged.

    Attributes
    ----------
    results : dict from int to list of arrays
        The result of f on the driver for each checked data block, as a list of arrays (leaves). [] if the
        result has a different structure than the received ones.
    latest : LocalEvaluation or None
        The most recently started call of f.
    """

    def __init__(
        self,
        coded_data: CodedData,
        options: MapOptions,
        decoder: ResultDecoder,
        evaluator: LocalEvaluator,
        parity_checks: ParityChecks,
    ) -> None:
        self._coded_data, self._options, self._decoder = coded_data, options, decoder
        self._received, self._evaluator, self._parity_checks = decoder.received, evaluator, parity_checks
        self.results: dict[int, list[Array]] = {}
        self.latest: LocalEvaluation | None = None
        # A task, and a call of f on the coded block of this task, reflected at the data block of `latest`.
        # This extra check is made only if coded blocks contain noise (see `_start_reflection`).
        self._reflection: tuple[int, LocalEvaluation] | None = None

    def start(self, block_index: int) -> None:
        """Start calling the mapped function f on a data block whose result is missing."""
        self.latest = self._evaluator.start_on_block(block_index, use_data_block=True)
        self._reflection = self._start_reflection(block_index)

    def poll(self) -> LocalEvaluation:
        """Wait briefly for the latest local call of the mapped function, and store its result if it ended."""
        evaluation = self.latest
        assert evaluation is not None
        has_ended = evaluation.poll() and (self._reflection is None or self._reflection[1].poll())
        if has_ended and evaluation.leaves is not None:
            expected_structure = self._received.structure
            # If results are in storage, only samples were received, whose structure cannot be compared.
            is_sample = expected_structure[0] == "sample"
            has_same_structure = is_sample or repr(evaluation.structure) == repr(expected_structure)
            self.results[evaluation.block_index] = evaluation.leaves if has_same_structure else []
        return evaluation

    @property
    def has_latest_result(self) -> bool:
        """Whether the latest local call of the mapped function has returned a result."""
        return self.latest is not None and self.latest.block_index in self.results

    @property
    def checked_mask(self) -> Mask:
        """A boolean mask over the missing blocks: True where the mapped function was called on the driver."""
        return self.get_missing_block_mask(self.results)

    def get_missing_block_mask(self, block_indices: Collection[int]) -> Mask:
        """Return a boolean mask over the missing blocks: True for the blocks in `block_indices`."""
        missing_indices = self._decoder.tracker.decoder.missing_indices.tolist()
        return np.array([block_index in block_indices for block_index in missing_indices], bool)

    def _start_reflection(self, block_index: int) -> tuple[int, LocalEvaluation] | None:
        """Start an extra check of f if the coded blocks contain noise (secret sharing), else return None.

        Strong noise may hide that the mapped function f is not linear. For example, |x| has a kink at 0, and
        the noise may move all coded blocks to the same side of it, where f looks linear. Therefore f is also
        called on the reflection of a coded block at a data block, 2 * data block - coded block. If the coded
        block is far enough from the kink, its reflection is on the other side. If f is affine, the result is
        2 * f(data block) - f(coded block). The coded block whose result contains the largest value is used.
        """
        code = self._coded_data.code
        has_real_noise = code.adds_noise and not code.supports_integers
        if not has_real_noise or self._received.structure[0] == "sample":
            return None
        task_index = max(self._received.by_task, key=self._compute_max_magnitude_of_result)

        def make_reflection() -> Any:
            mirror, structure = flatten(copy_block(self._coded_data, block_index, use_data_block=True))
            noisy, _ = flatten(copy_block(self._coded_data, task_index))
            with np.errstate(invalid="ignore", over="ignore"):
                return unflatten(structure, [2 * leaf - other for leaf, other in zip(mirror, noisy)])

        return task_index, self._evaluator.start(make_reflection, task_index)

    def _compute_max_magnitude_of_result(self, task_index: int) -> float:
        """Return the largest absolute value in the result of a task, or 0 if the result is empty."""
        leaves = self._received.by_task[task_index].leaves
        return error_detection.compute_max_abs(leaves) if leaves else 0.0

    # -- comparison with decoded results ----------------------------------------------------

    def find_differing_blocks(self) -> list[int]:
        """Return the blocks whose decoded results differ from the results that the driver has computed."""
        results, missing_blocks = self._decoder.decode(), self._decoder.tracker.decoder.missing_indices
        differing = [
            index
            for index in self.results
            if index in missing_blocks and self._differs(index, results[index])
        ]
        return differing or self._find_differing_reflection(results)

    def _differs(self, block_index: int, decoded_leaves: list[Array]) -> bool:
        """Return whether a decoded result differs from the result that the driver has computed."""
        return self._decoder.compute_once(
            ("differs", block_index),
            lambda: not self.agrees(self.results[block_index], decoded_leaves, is_decoded=True),
        )

    def _find_differing_reflection(self, results: list[list[Array]]) -> list[int]:
        """Return a list with the latest checked block if the extra check of noisy blocks fails, else [].

        This is the check that `_start_reflection` has started.
        """
        if self.latest is None or self._reflection is None:
            return []
        (task_index, reflection), block_index = self._reflection, self.latest.block_index
        if reflection.leaves is None or block_index not in self.results:
            return []
        if task_index not in self._received.by_task:
            return []
        pairs = zip(results[block_index], self._received.by_task[task_index].leaves)
        with np.errstate(invalid="ignore", over="ignore"):
            implied = [2 * decoded - received for decoded, received in pairs]
        return [] if self.agrees(reflection.leaves, implied, is_decoded=True) else [block_index]

    def compute_distances(self, block_index: int) -> list[float]:
        """Return the maximum relative distance of each decoded array from the one computed on the driver."""
        leaf_pairs = zip(self.results[block_index], self._decoder.decoded_results[block_index])
        with np.errstate(invalid="ignore"):
            distances = [
                float(np.abs(local_leaf.astype(decoded_leaf.dtype) - decoded_leaf).max(initial=0))
                for local_leaf, decoded_leaf in leaf_pairs
            ]
        return [
            distance / (self._parity_checks.compute_max_magnitude(leaf_index) or 1.0)
            for leaf_index, distance in enumerate(distances)
        ]

    def agrees(
        self, local_leaves: list[Array], received_leaves: list[Array], is_decoded: bool = False
    ) -> bool:
        """Return whether a result agrees with the result computed on the driver, up to rounding.

        Integers must be equal.

        Parameters
        ----------
        local_leaves, received_leaves : list of arrays
            The arrays of the result computed on the driver, and of the result to check.
        is_decoded : bool
            Whether the result was decoded, so that rounding errors are amplified.
        """
        if len(local_leaves) != len(received_leaves):
            return False
        for leaf_index, (local_leaf, received_leaf, max_error) in enumerate(
            zip(local_leaves, received_leaves, self._parity_checks.compute_leaf_error_bounds())
        ):
            decoding_noise = 0.0, 0.0
            if is_decoded:
                amplification = self._decoder.tracker.amplification
                decoding_noise = amplification, self._parity_checks.compute_max_magnitude(leaf_index)
            precision_dtype = self._decoder.get_accuracy_limiting_dtype(received_leaf.dtype)
            if not leaves_agree(
                local_leaf,
                received_leaf,
                precision_dtype,
                self._options.rtol,
                *decoding_noise,
                max_error * max(1.0, decoding_noise[0]),
            ):
                return False
        return True


def leaves_agree(
    local_leaf: Array,
    other_leaf: Array,
    limiting_dtype: DType,
    rtol: float | None,
    amplification: float,
    max_magnitude: float,
    max_error: float,
) -> bool:
    """Return whether an array computed on the driver agrees with another, up to rounding.

    Integers must be equal, and NaN counts as equal to NaN.

    Parameters
    ----------
    local_leaf, other_leaf : array
        The array from the driver, and the array to compare it with.
    limiting_dtype : dtype
        The least precise dtype to which intermediate values were rounded.
    rtol : float or None
        The relative error that the caller of the map accepts.
    amplification : float
        The factor by which decoding has multiplied rounding errors, or 0 if the result was not decoded.
    max_magnitude : float
        The magnitude to which rounding errors of the array are relative.
    max_error : float
        An absolute difference that is allowed in any case.
    """
    if get_comparable_types_and_shapes([local_leaf]) != get_comparable_types_and_shapes([other_leaf]):
        return False
    if is_integer_dtype(other_leaf.dtype):
        return bool((local_leaf.astype(other_leaf.dtype) == other_leaf).all())
    relative_tolerance = max(error_detection.compute_parity_check_tolerance(limiting_dtype), rtol or 0.0)
    epsilon = machine_epsilon(limiting_dtype)
    max_decoding_error = max(rtol or get_default_rtol(limiting_dtype), amplification * epsilon)
    decoding_error = min(DECODING_NOISE_FACTOR * amplification * epsilon, max_decoding_error)
    relative_error = max(error_detection.estimate_relative_rounding_error(limiting_dtype), decoding_error)
    magnitudes = np.maximum(np.abs(local_leaf), np.abs(other_leaf))
    with np.errstate(invalid="ignore"):
        absolute_tolerance = relative_error * max(max_magnitude, float(magnitudes.max(initial=0)))
        tolerances = relative_tolerance * magnitudes + max(absolute_tolerance, max_error)
        close_mask = np.abs(local_leaf - other_leaf) <= tolerances
    # Equal infinities agree, although their difference is NaN.
    equal_mask = (local_leaf == other_leaf) | (np.isnan(local_leaf) & np.isnan(other_leaf))
    return bool((close_mask | equal_mask).all())
