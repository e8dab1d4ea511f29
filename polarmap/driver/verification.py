"""Is f linear, and did every worker tell the truth? The left-over equations, or f on the driver."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property, partial
from typing import Any, NoReturn

import numpy as np

from polarmap.codes import error_detection
from polarmap.codes.base import ErasureDecoder
from polarmap.codes.polar import PolarCode
from polarmap.codes.secret_sharing import SecretSharingCode
from polarmap.driver.decoding_collector import (
    DecodingCollector,
    NonFiniteResultError,
    get_comparable_types_and_shapes,
)
from polarmap.driver.function_properties import LINEAR_OR_AFFINE
from polarmap.driver.local_evaluation import LocalEvaluation, copy_block
from polarmap.dtypes import Array, DType, Mask, get_default_rtol, is_integer_dtype, machine_epsilon
from polarmap.errors import NotLinearError
from polarmap.executors.interface import Failure
from polarmap.worker.pytree import flatten, unflatten

DECODING_NOISE_FACTOR = 16  # roundings of the largest number of a leaf, times the amplification of decoding
NOT_LINEAR_MESSAGE = (
    "f is not {requirement} (or not deterministic), so lost results cannot be decoded. For a polynomial "
    "say degree=; for any f at all use coded_sum if a sum of its results is wanted, hedged_map if each is; "
    "if it is {kind} but badly conditioned, raise rtol; verify=False trusts you and skips the check"
)


class Verifier:
    """Checks the results of a map.

    Attributes
    ----------
    local_results : dict from data block to flat result
        What f gave here.
    max_residual : float or None
        Largest relative residual of the left-over equations when last evaluated; None if never.
    is_violated : bool
        Whether one of them was broken then, and nobody has been found who did it.
    suspects : set of int or None
        Any one of whom would explain it; None if nothing tells.
    """

    def __init__(self, collector: DecodingCollector) -> None:
        self._collector, self._coded_data = collector, collector.coded_data
        self._local_evaluation: LocalEvaluation | None = None
        # a task, and f of its block's mirror image
        self._reflected_evaluation: tuple[int, LocalEvaluation] | None = None
        # of the results whose equations were evaluated last
        self._checked_decoder: ErasureDecoder | None = None
        self.suspects: set[int] | None = None
        self._leaf_residuals: list[float | None] = []  # of each leaf, as last measured
        # Of each leaf: of what rounding is a share, too, where equations do not hold else.
        self._uncancelled_magnitudes: list[float] = []
        self.local_results: dict[int, list[Array]] = {}
        self.max_residual: float | None = None
        self.is_violated = False

    def has_contradicting_results(self) -> bool:
        """Whether left-over equations, if there are any, do not hold, whoever is to blame."""
        tracker = self._collector.tracker
        return tracker.is_ready and tracker.n_redundant_checks > 0 and self.evaluate_parity_checks()

    def find_unchecked_results(self) -> tuple[int, ...]:
        """The results that are handed out, or that decoded blocks are made of, and that no check involves.

        Checks are the left-over equations and the decoded blocks of which f was evaluated here.
        Garbage from one of these workers would pass; from any other it would not.
        """
        decoder = self._decoder
        returned_mask = decoder.arrived_indices < len(self._coded_data.code.systematic_indices)
        return tuple(decoder.arrived_indices[self._find_unchecked_mask(returned_mask)].tolist())

    def _find_unchecked_mask(self, include_mask: Mask | bool = False) -> Mask:
        """Which of the arrived results that decoded blocks are made of, or `include_mask`, no check
        involves.
        """
        decoder = self._decoder
        unchecked_mask = np.zeros(len(decoder.arrived_indices), bool)
        evaluated_mask = self._locally_evaluated_mask
        for dtype in set(self._collector.result_dtypes()):
            used_mask, _, detectable = decoder.get_weight_masks(dtype)
            checked_mask = detectable[evaluated_mask].any(axis=0)
            if self._leaf_residuals:
                checked_mask |= error_detection.compute_checked_blocks_mask(decoder, dtype)
            unchecked_mask |= (used_mask | include_mask) & ~checked_mask
        return unchecked_mask

    @property
    def has_conclusive_checks(self) -> bool:
        """Whether the checks involve every result that decoded blocks are made of, and f of a data block.

        Equations hold of any f whose results are equal so far: then only those blocks are checked that were
        evaluated here. Where no worker gets a data block they hold of any that is linear far away from the
        data; those of copies of a block hold of any f. What is odd about the result of a data block may be
        f's own doing.
        """
        if self._collector.mismatched_blocks - self.local_results.keys() or (
            not self.has_check_of_block_sum and self._block_sum_mask.any()
        ):
            return False
        if not self._locally_evaluated_mask.all() and not self._has_differing_results():
            return False
        if not self.local_results and not len(self._coded_data.code.systematic_indices):
            return False
        return not self._find_unchecked_mask().any()

    @property
    def has_check_of_block_sum(self) -> bool:
        """Whether one of the checks involves f of a sum of blocks: a copy of a block tells nothing of f."""
        if self._block_sum_mask[self._locally_evaluated_mask].any():
            return True
        dtypes = set(self._collector.result_dtypes()) if self._leaf_residuals else ()
        return any(
            error_detection.compute_max_blocks_per_parity_check(self._decoder, dtype) > 2 for dtype in dtypes
        )

    @property
    def _locally_evaluated_mask(self) -> Mask:
        """Which of the blocks to decode f was evaluated on here."""
        return self._get_missing_block_mask(self.local_results)

    def _get_missing_block_mask(self, block_indices: Collection[int]) -> Mask:
        """Which of the blocks to decode are among these."""
        return np.array(
            [block_index in block_indices for block_index in self._decoder.missing_indices.tolist()], bool
        )

    @property
    def _block_sum_mask(self) -> Mask:
        """Which of the blocks to decode are made of more than a copy."""
        combination_mask = np.zeros(len(self._decoder.missing_indices), bool)
        for dtype in set(self._collector.result_dtypes()):
            combination_mask |= self._decoder.get_weight_masks(dtype).recombined_results_mask
        return combination_mask

    @cached_property
    def densest_parity_block(self) -> tuple[int, int]:
        """The parity block that is made of most data blocks, and of how many."""
        k, code = len(self._coded_data.code.systematic_indices), self._coded_data.code
        if not (isinstance(code, PolarCode) and code.supports_integers):
            return k, code.k
        n_data_blocks = np.count_nonzero(code.encoding_matrix, axis=1)
        return k + int(np.argmax(n_data_blocks)), int(n_data_blocks.max())

    def compute_error_bound(self) -> float:
        """The error that may have been made unseen, as a share of the largest number of a leaf.

        By rounding, which decoding multiplies, or by one worker whose deviation the checks could not
        tell from rounding.
        """
        decoder, bound = self._decoder, 0.0
        checked_blocks: list[int] = []
        if not self.find_differing_blocks():
            checked_blocks = decoder.missing_indices[self._locally_evaluated_mask].tolist()
        distances_by_block = {index: self._compute_local_distances(index) for index in checked_blocks}
        for leaf_index, dtype in enumerate(self._collector.result_dtypes()):
            is_integer = is_integer_dtype(dtype)
            if is_integer and not decoder.rounds_integers:
                continue
            # rounding may hide as much
            rounding_unit = machine_epsilon(self._collector.get_accuracy_limiting_dtype(dtype))
            residual = self._leaf_residuals[leaf_index] if self._leaf_residuals else None
            residual = None if residual is None else residual + rounding_unit
            decoding_error = 0.0 if is_integer else self.amplification * rounding_unit  # of decoded blocks
            undetected_by_block = {
                index: distances[leaf_index] + rounding_unit + decoding_error
                for index, distances in distances_by_block.items()
            }
            undetected_error = error_detection.bound_undetected_error(
                decoder, residual, undetected_by_block, len(self._coded_data.code.systematic_indices)
            )
            decoded = [leaves[leaf_index] for leaves in self._collector.decoded_results]
            max_magnitude = self._compute_max_magnitude(leaf_index, decoded)
            if max_magnitude:  # parity results may be larger than those that are wanted
                # Integers that f made of floats, and so rounded, may be off by a half through every weight.
                integer_rounding = 0.0
                if is_integer:
                    integer_rounding = 0.5 * float(np.abs(decoder.weights).sum(axis=1).max()) + 0.5
                error = undetected_error * self._compute_max_result_magnitude(leaf_index) / max_magnitude
                bound = max(bound, error + decoding_error + integer_rounding / max_magnitude)
        return bound

    @property
    def amplification(self) -> float:
        """The largest of a block that is decoded of floats, which may stand beside exact integers."""
        decoder = self._decoder
        if not decoder.modular:
            return decoder.amplification
        return float(np.linalg.norm(decoder.weights, axis=1).max())

    def _compute_max_result_magnitude(self, leaf_index: int) -> float:
        """The number of which rounding of a leaf is a share in the results."""
        received = [outcome.leaves[leaf_index] for outcome in self._collector.results.values()]
        return self._compute_max_magnitude(leaf_index, received)

    def _compute_max_magnitude(self, leaf_index: int, arrays: list[Array]) -> float:
        """The largest number in these arrays of a leaf, or where its terms do not cancel if that is known."""
        uncancelled = self._uncancelled_magnitudes[leaf_index : leaf_index + 1]
        return max([error_detection.compute_max_abs(arrays), *uncancelled])

    def _compute_uncancelled_magnitudes(self) -> list[float]:
        """How large a product is, which is an f of ours, where the terms do not cancel whose sums it is.

        It is evaluated here, on the block that is made of most data blocks, with other signs. Of what
        others' functions do it is not known whether they round as much as that by themselves.
        """
        if not self._collector.options.traits.is_rowwise:
            return []
        block_index, _ = self.densest_parity_block
        collector, build_block = self._collector, partial(self._build_block_with_random_signs, block_index)
        evaluation = collector.evaluate_locally(build_block, block_index)
        leaves = evaluation.wait_for_leaves(collector.local_evaluation_timeout) or []
        return [error_detection.compute_max_abs([leaf]) for leaf in leaves]

    def _build_block_with_random_signs(self, block_index: int) -> Any:
        """A coded block whose numbers have signs at random; those that are exact, as indices, stay."""
        leaves, structure = flatten(copy_block(self._coded_data, block_index))
        rng = np.random.default_rng(0)
        for leaf in leaves:
            if not is_integer_dtype(leaf.dtype):
                leaf *= rng.choice(np.array([-1, 1], leaf.dtype), leaf.shape)
        return unflatten(structure, leaves)

    def poll_local_evaluation(self) -> LocalEvaluation:
        """f on a block that has to be decoded, on a thread: under way, or ended just now.

        The next one begins where the last has ended and results are left unchecked; it takes the
        block that is made of most of these.
        """
        evaluation = self._local_evaluation
        needs_another = (
            evaluation is not None
            and evaluation.block_index in self.local_results
            and not self.has_conclusive_checks
        )
        if evaluation is None or evaluation.block_index not in self._decoder.missing_indices or needs_another:
            block_index = self._choose_block_to_evaluate()
            build_block = partial(copy_block, self._coded_data, block_index, use_data_block=True)
            evaluation = self._local_evaluation = self._collector.evaluate_locally(build_block, block_index)
            self._reflected_evaluation = self._evaluate_reflection(block_index)
        needs_another = not evaluation.is_running and not (
            self._reflected_evaluation and self._reflected_evaluation[1].is_running
        )
        if needs_another and evaluation.leaves is not None:
            expected_structure = self._collector.result_structure
            # of what is stored
            is_sample = expected_structure[0] == "sample"
            has_same_structure = is_sample or repr(evaluation.structure) == repr(expected_structure)
            # agrees with nothing
            self.local_results[evaluation.block_index] = evaluation.leaves if has_same_structure else []
        return evaluation

    def _evaluate_reflection(self, block_index: int) -> tuple[int, LocalEvaluation] | None:
        """Start f on the mirror image of a coded block behind a data block, if all coded blocks have noise.

        With much noise all coded blocks may lie on the same side of a kink, as of |x|, on which f is linear.
        The mirror image of one of them lies on the other side, unless that block is so close to the data
        block that the kink is not between the two: so it is the block whose result has the largest number.
        An affine f of the image is twice f of the data block less f of the coded block.
        """
        if not (
            isinstance(self._coded_data.code, SecretSharingCode)
            and self._collector.result_structure[0] != "sample"
        ):
            return None
        task = max(self._collector.results, key=self._compute_max_magnitude_of_result)

        def make_reflection() -> Any:
            mirror, structure = flatten(copy_block(self._coded_data, block_index, use_data_block=True))
            noisy, _ = flatten(copy_block(self._coded_data, task))
            with np.errstate(invalid="ignore", over="ignore"):
                return unflatten(structure, [2 * leaf - other for leaf, other in zip(mirror, noisy)])

        return task, self._collector.evaluate_locally(make_reflection, task)

    def _compute_max_magnitude_of_result(self, task: int) -> float:
        """Return the largest absolute value in the result of a task, 0 if it has no numbers."""
        leaves = self._collector.results[task].leaves
        return error_detection.compute_max_abs(leaves) if leaves else 0.0

    def find_differing_blocks(self) -> list[int]:
        """The decoded blocks that are not what f gave of them here."""
        results, missing_blocks = self._collector.decode_results(), self._decoder.missing_indices
        local_results = [
            (index, leaves) for index, leaves in self.local_results.items() if index in missing_blocks
        ]
        differing = [
            index
            for index, leaves in local_results
            if not self._results_agree(leaves, results[index], is_decoded=True)
        ]
        return differing or self._find_differing_reflection(results)

    def _find_differing_reflection(self, results: list[list[Array]]) -> list[int]:
        """Return the block evaluated last if f of the image behind it is not what its result implies."""
        if self._local_evaluation is None or self._reflected_evaluation is None:
            return []
        (task, reflection), block_index = self._reflected_evaluation, self._local_evaluation.block_index
        if reflection.leaves is None or block_index not in self.local_results:
            return []
        if task not in self._collector.results:
            return []
        pairs = zip(results[block_index], self._collector.results[task].leaves)
        with np.errstate(invalid="ignore", over="ignore"):
            implied = [2 * decoded - received for decoded, received in pairs]
        return [] if self._results_agree(reflection.leaves, implied, is_decoded=True) else [block_index]

    def _compute_local_distances(self, block_index: int) -> list[float]:
        """How far a decoded block is from what f gave here, by leaf, as a share of the largest number."""
        leaf_pairs = zip(self.local_results[block_index], self._collector.decoded_results[block_index])
        with np.errstate(invalid="ignore"):
            distances = [
                float(np.abs(local_leaf.astype(decoded_leaf.dtype) - decoded_leaf).max(initial=0))
                for local_leaf, decoded_leaf in leaf_pairs
            ]
        return [
            distance / (self._compute_max_result_magnitude(leaf_index) or 1.0)
            for leaf_index, distance in enumerate(distances)
        ]

    @cached_property
    def parity_evaluation(self) -> LocalEvaluation:
        """f of the parity block that is made of most data blocks, on a thread: under way, or ended."""
        block_index, _ = self.densest_parity_block
        read_block = partial(copy_block, self._coded_data, block_index)
        return self._collector.evaluate_locally(read_block, block_index)

    def agrees_with_parity_block(self, parity_leaves: list[Array]) -> bool:
        """Whether f of that parity block, evaluated here, is what the results of all data tell."""
        collector = self._collector
        first_outcome = collector.results[min(collector.results)]
        expected_types_and_shapes = get_comparable_types_and_shapes(first_outcome.leaves)
        if get_comparable_types_and_shapes(parity_leaves) != expected_types_and_shapes:
            self.max_residual = np.inf
            return False
        code, (parity_index, _) = self._coded_data.code, self.densest_parity_block
        k, positions = len(code.systematic_indices), np.arange(code.n)
        decoder = code.make_decoder((positions < k) | (positions == parity_index), collector.tracker.modular)
        flat_leaves = [np.ascontiguousarray(leaf_array).reshape(-1) for leaf_array in parity_leaves]
        received = [
            collector.get_flat_results_by_task(leaf_index) | {parity_index: leaf}
            for leaf_index, leaf in enumerate(flat_leaves)
        ]
        self._measure_parity_residuals(decoder, received)
        return not self.is_violated

    def record_f_is_linear(self) -> None:
        """Remember f for later maps of such data in this process, unless equal results are all it gave."""
        if self._collector.function_property.value is None and self._has_differing_results():
            self._collector.function_property.remember_value()

    def _has_differing_results(self) -> bool:
        """Whether results differ by more than rounding: f of equal blocks satisfies any equation."""
        collector = self._collector
        for leaf_index, dtype in enumerate(collector.result_dtypes()):
            first, *others = collector.get_flat_results_by_task(leaf_index).values()
            tolerance = 0.0
            if not is_integer_dtype(dtype):
                limiting_dtype = collector.get_accuracy_limiting_dtype(dtype)
                tolerance = error_detection.compute_parity_check_tolerance(limiting_dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                if any((np.abs(r - first) > tolerance * np.abs(first).max(initial=0)).any() for r in others):
                    return True
        return False

    @property
    def _decoder(self) -> ErasureDecoder:
        return self._collector.tracker.decoder

    def _choose_block_to_evaluate(self) -> int:
        """The block to decode that shows most results unchecked so far, whatever they deviate by."""
        decoder, unchecked_mask = self._decoder, self._find_unchecked_mask()
        scores = sum(
            decoder.get_weight_masks(dtype).invertible_weights_mask[:, unchecked_mask].sum(axis=1)
            for dtype in self._collector.result_dtypes()
        )
        mismatched_mask = self._get_missing_block_mask(self._collector.mismatched_blocks)
        scores = scores + self._block_sum_mask / 2 + self._coded_data.n * mismatched_mask
        scores[self._locally_evaluated_mask] = -1.0
        return int(decoder.missing_indices[np.argmax(scores)])

    def evaluate_parity_checks(self) -> bool:
        """Whether a left-over equation is, of the results that arrived."""
        decoder = self._decoder
        if self._checked_decoder is not decoder:
            leaf_indices = range(len(self._collector.result_dtypes()))
            received = [self._collector.get_flat_results_by_task(leaf_index) for leaf_index in leaf_indices]
            self._measure_parity_residuals(decoder, received)
        return self.is_violated

    def _measure_parity_residuals(
        self, decoder: ErasureDecoder, received_by_leaf: list[dict[int, Array]]
    ) -> None:
        """Evaluate the left-over equations of a recovery on the flat results, by leaf, that satisfy them."""
        is_violated = False
        suspects: set[int] | None = None
        self._leaf_residuals = []
        for leaf_index, (received, dtype, max_error) in enumerate(
            zip(received_by_leaf, self._collector.result_dtypes(), self._compute_leaf_error_bounds())
        ):
            if max_error == np.inf:
                self._leaf_residuals.append(None)
                continue
            operands = decoder.transform_for_parity_checks(received)
            precision_dtype = self._collector.get_accuracy_limiting_dtype(dtype)
            compute_residual = partial(
                error_detection.evaluate_parity_checks,
                decoder,
                operands,
                dtype,
                self._collector.options.rtol,
                precision_dtype,
            )
            leaf_residual = compute_residual(max_error)
            if len(leaf_residual.violations) and not is_integer_dtype(dtype):
                magnitudes = self._uncancelled_magnitudes or self._compute_uncancelled_magnitudes()
                self._uncancelled_magnitudes = magnitudes
                if magnitudes:
                    leaf_residual = compute_residual(max_error, magnitudes[leaf_index])
            if not leaf_residual.is_finite:
                raise NonFiniteResultError
            self._leaf_residuals.append(leaf_residual.max_relative)
            if len(leaf_residual.violations):
                is_violated = True
                if decoder.n_redundant_checks > 1:
                    leaf_suspects = set(
                        error_detection.locate_erroneous_blocks(
                            decoder, operands, leaf_residual.violations, dtype, precision_dtype
                        )
                    )
                    suspects = leaf_suspects if suspects is None else suspects & leaf_suspects
        residuals = [residual for residual in self._leaf_residuals if residual is not None]
        self.max_residual, self.is_violated = max(residuals, default=0.0), is_violated
        self._checked_decoder, self.suspects = decoder, suspects

    def reject_result_or_blame_f(self, task_index: int) -> None:
        """One result contradicts the others: garbage, unless f gives it here too."""
        read_block = partial(copy_block, self._coded_data, task_index)
        evaluation = self._collector.evaluate_locally(read_block, task_index)
        local_leaves = evaluation.wait_for_leaves(self._collector.local_evaluation_timeout)
        if local_leaves is not None and self._results_agree(
            local_leaves, self._collector.results[task_index].leaves
        ):
            self.raise_not_linear_error(f"f of block {task_index} does not fit the parity equations")
        message = f"the result of task {task_index} contradicts the parity equations"
        self.max_residual, self.is_violated = None, False
        self._collector.discard_result(task_index, Failure("garbage", "GarbageResult", message))

    def _results_agree(
        self, local_leaves: list[Array], received_leaves: list[Array], is_decoded: bool = False
    ) -> bool:
        """Whether f as evaluated here equals a result up to rounding (integers: exactly)."""
        if len(local_leaves) != len(received_leaves):
            return False
        for leaf_index, (local_leaf, received_leaf, max_error) in enumerate(
            zip(local_leaves, received_leaves, self._compute_leaf_error_bounds())
        ):
            decoding_noise = 0.0, 0.0
            if is_decoded:
                amplification = self._collector.tracker.amplification
                decoding_noise = amplification, self._compute_max_result_magnitude(leaf_index)
            precision_dtype = self._collector.get_accuracy_limiting_dtype(received_leaf.dtype)
            if not leaves_agree(
                local_leaf,
                received_leaf,
                precision_dtype,
                self._collector.options.rtol,
                *decoding_noise,
                max_error * max(1.0, decoding_noise[0]),
            ):
                return False
        return True

    def _compute_leaf_error_bounds(self) -> list[float]:
        """What entries of each leaf may be off by anyway."""
        received_leaves = [outcome.leaves for outcome in self._collector.results.values()]
        compute_error_bounds = self._collector.options.traits.error_bounds
        if compute_error_bounds is None:
            return [0.0] * len(received_leaves[0])
        return compute_error_bounds(received_leaves)

    def raise_not_linear_error(self, finding: str) -> NoReturn:
        """Give up: nothing can be decoded."""
        requirement = self._coded_data.code.requirement
        requirement_name = "linear" if requirement == LINEAR_OR_AFFINE else "one"
        raise NotLinearError(
            f"{finding}: {NOT_LINEAR_MESSAGE.format(requirement=requirement, kind=requirement_name)}"
        )


def leaves_agree(
    local_leaf: Array,
    other_leaf: Array,
    limiting_dtype: DType,
    rtol: float | None,
    amplification: float,
    max_magnitude: float,
    max_error: float,
) -> bool:
    """Whether f as evaluated here equals a result that decoding multiplied the errors of.

    `max_magnitude`: number of the leaf that rounding is a share of.
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
    # infinities differ by NaN
    equal_mask = (local_leaf == other_leaf) | (np.isnan(local_leaf) & np.isnan(other_leaf))
    return bool((close_mask | equal_mask).all())
