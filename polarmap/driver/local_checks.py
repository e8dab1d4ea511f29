"""Checks of decoded results against f evaluated on the driver."""

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

DECODING_NOISE_FACTOR = 16  # roundings of the largest number of a leaf, times the amplification of decoding


class LocalChecks:
    """Evaluates f on blocks whose results are decoded, one block after the other, and compares the results.

    Parameters
    ----------
    coded_data : CodedData
    options : MapOptions
    decoder : ResultDecoder
    evaluator : LocalEvaluator
    parity_checks : ParityChecks
        Know to which magnitudes rounding errors are relative.

    Attributes
    ----------
    results : dict from int to list of arrays
        By data block the result of f on the driver, as leaves; [] for one of another structure.
    latest : LocalEvaluation or None
        The evaluation that was started last.
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
        # A task, and f of the mirror image of its block behind the block of `latest`.
        self._reflection: tuple[int, LocalEvaluation] | None = None

    def start(self, block_index: int) -> None:
        """Start f on a data block whose result is missing."""
        self.latest = self._evaluator.start_on_block(block_index, use_data_block=True)
        self._reflection = self._start_reflection(block_index)

    def poll(self) -> LocalEvaluation:
        """Return the latest evaluation, and take in its result if it ends within a moment."""
        evaluation = self.latest
        assert evaluation is not None
        has_ended = evaluation.poll() and (self._reflection is None or self._reflection[1].poll())
        if has_ended and evaluation.leaves is not None:
            expected_structure = self._received.structure
            # Only a sample of a result in storage has been received.
            is_sample = expected_structure[0] == "sample"
            has_same_structure = is_sample or repr(evaluation.structure) == repr(expected_structure)
            self.results[evaluation.block_index] = evaluation.leaves if has_same_structure else []
        return evaluation

    @property
    def has_latest_result(self) -> bool:
        """Whether the evaluation that was started last has ended with a result."""
        return self.latest is not None and self.latest.block_index in self.results

    @property
    def checked_mask(self) -> Mask:
        """The mask of the missing blocks on which f has been evaluated."""
        return self.get_missing_block_mask(self.results)

    def get_missing_block_mask(self, block_indices: Collection[int]) -> Mask:
        """Return the mask of the missing blocks that are among `block_indices`."""
        missing_indices = self._decoder.tracker.decoder.missing_indices.tolist()
        return np.array([block_index in block_indices for block_index in missing_indices], bool)

    def _start_reflection(self, block_index: int) -> tuple[int, LocalEvaluation] | None:
        """Start f on the mirror image of a coded block behind a data block, if all coded blocks have noise.

        With much noise all coded blocks may be on the same side of a kink, as of |x|, on which f is linear.
        The mirror image of one of them is on the other side, unless that block is so close to the data
        block that the kink is not between the two: so it is the block whose result has the largest number.
        An affine f of the image is twice f of the data block less f of the coded block.
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
        """Return the largest absolute value in the result of a task, 0 if it has no numbers."""
        leaves = self._received.by_task[task_index].leaves
        return error_detection.compute_max_abs(leaves) if leaves else 0.0

    # -- comparison with decoded results ----------------------------------------------------

    def find_differing_blocks(self) -> list[int]:
        """Return the decoded blocks whose results differ from f on the driver."""
        results, missing_blocks = self._decoder.decode(), self._decoder.tracker.decoder.missing_indices
        differing = [
            index
            for index in self.results
            if index in missing_blocks and self._differs(index, results[index])
        ]
        return differing or self._find_differing_reflection(results)

    def _differs(self, block_index: int, decoded_leaves: list[Array]) -> bool:
        """Return whether a decoded result differs from f on the driver."""
        return self._decoder.compute_once(
            ("differs", block_index),
            lambda: not self.agrees(self.results[block_index], decoded_leaves, is_decoded=True),
        )

    def _find_differing_reflection(self, results: list[list[Array]]) -> list[int]:
        """Return the block evaluated last if f of the image behind it is not what its result implies."""
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
        """Return for each leaf how far a decoded block is from f on the driver, relative to the leaf."""
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
        """Return whether f on the driver equals a result up to rounding. Integers must be equal.

        Parameters
        ----------
        local_leaves, received_leaves : list of arrays
        is_decoded : bool
            Whether the result was decoded, which amplifies rounding errors.
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
    """Return whether f on the driver equals a result up to rounding. Integers must be equal.

    Parameters
    ----------
    local_leaf, other_leaf : array
        f on the driver, and the result.
    limiting_dtype : dtype
        The coarsest dtype in which the result was rounded.
    rtol : float or None
        The relative error that the caller of the map accepts.
    amplification : float
        By how much decoding has multiplied the rounding of received results; 0 if the result is a received
        one.
    max_magnitude : float
        The magnitude to which rounding errors of the leaf are relative.
    max_error : float
        By how much entries may differ in any case.
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
    # The difference of equal infinities is NaN.
    equal_mask = (local_leaf == other_leaf) | (np.isnan(local_leaf) & np.isnan(other_leaf))
    return bool((close_mask | equal_mask).all())
