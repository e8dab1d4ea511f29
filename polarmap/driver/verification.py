"""Verify the results of a coded map: test that f is linear, and that every worker returned f(block).

f is the mapped function. The tests are parity checks, which are redundant equations between results, and
calls of f on the driver.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes import error_detection
from polarmap.codes.base import ErasureDecoder
from polarmap.driver.function_properties import LINEAR_OR_AFFINE
from polarmap.driver.local_evaluation import LocalEvaluation, LocalEvaluator
from polarmap.driver.options import MapOptions
from polarmap.driver.parity_checks import ParityChecks, ParityResiduals
from polarmap.driver.result_decoder import NonFiniteResultError, ResultDecoder
from polarmap.dtypes import Mask, is_integer_dtype, machine_epsilon
from polarmap.errors import CodeError, NotLinearError
from polarmap.executors.interface import Failure, FailureKind
from polarmap.report import Verification

if TYPE_CHECKING:
    from polarmap.driver.local_checks import LocalChecks

NOT_LINEAR_MESSAGE = """\
f is not {requirement}, or not deterministic, so lost results cannot be decoded.
Found: {finding}.
- If f is a polynomial in its block, pass degree=.
- For any other f, use hedged_map, which returns each result, or coded_sum, which returns their sum.
- If f is {kind} but ill-conditioned, raise rtol=.
- verify=False skips this check."""


class Pending(NamedTuple):
    """The verdict that the results of a map cannot be judged yet: another result or check must be awaited."""


class Accepted(NamedTuple):
    """The verdict that the results of a map have passed the required checks and can be returned.

    Attributes
    ----------
    verification : Verification
        How the results were verified.
    warning : str
        A warning for the caller of the map, or "".
    proves_f : bool
        Whether the checks prove the property that the code assumes of the mapped function f, for example that
        f is linear. If so, later maps with the same f need not check it.
    """

    verification: Verification
    warning: str = ""
    proves_f: bool = False


class Rejected(NamedTuple):
    """The verdict that a result is wrong: it contradicts others, and the driver could not reproduce it."""

    task_index: int
    failure: Failure


class Refused(NamedTuple):
    """The verdict that results cannot be used for decoding, as when the mapped function is not linear."""

    error: NonFiniteResultError | NotLinearError | CodeError


Verdict = Pending | Accepted | Rejected | Refused


class Verifier:
    """Checks the results of a coded map by parity checks and by calls of the mapped function on the driver.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks, one per task.
    options : MapOptions
        The options of the map.
    decoder : ResultDecoder
        Provides the received results and decodes the missing ones.
    evaluator : LocalEvaluator
        Calls the mapped function on the driver.
    """

    def __init__(
        self, coded_data: CodedData, options: MapOptions, decoder: ResultDecoder, evaluator: LocalEvaluator
    ) -> None:
        self._coded_data, self._code, self._options = coded_data, coded_data.code, options
        self._decoder, self._received, self._evaluator = decoder, decoder.received, evaluator
        self.parity_checks = ParityChecks(coded_data, options, decoder, evaluator)

    @cached_property
    def local_checks(self) -> LocalChecks:
        """The checks of decoded results against results computed on the driver, created on first access."""
        from polarmap.driver.local_checks import LocalChecks

        parts = self._coded_data, self._options, self._decoder, self._evaluator, self.parity_checks
        return LocalChecks(*parts)

    @property
    def _erasure_decoder(self) -> ErasureDecoder:
        return self._decoder.tracker.decoder

    # -- parity checks ----------------------------------------------------------------------

    def evaluate_redundant_checks(self) -> ParityResiduals | None:
        """Return the residuals of the parity checks, or None if there are no redundant results."""
        tracker = self._decoder.tracker
        return self.parity_checks.evaluate() if tracker.is_ready and tracker.n_redundant_checks else None

    def reject_result_or_blame_f(self, task_index: int) -> Verdict:
        """Return the verdict on a result that contradicts others.

        The driver calls the mapped function on the block of that result. If it gets the same result, the
        function is not linear. Otherwise, the result is rejected as garbage.
        """
        local_leaves = self._evaluator.wait_for_result_arrays(self._evaluator.start_on_block(task_index))
        received_leaves = self._received.by_task[task_index].leaves
        if local_leaves is not None and self.local_checks.agrees(local_leaves, received_leaves):
            return self.make_refused_verdict(f"f of block {task_index} does not fit the parity equations")
        self.parity_checks.residuals = None
        message = f"the result of task {task_index} contradicts the parity equations"
        return Rejected(task_index, Failure(FailureKind.GARBAGE, "GarbageResult", message))

    def make_refused_verdict(self, finding: str) -> Refused:
        """Return the verdict that the mapped function is not linear, or not of the degree the code assumes.

        Parameters
        ----------
        finding : str
            Which check failed and by how much, for the error message.
        """
        requirement = self._code.requirement
        requirement_name = "linear" if requirement == LINEAR_OR_AFFINE else "one"
        message = NOT_LINEAR_MESSAGE.format(requirement=requirement, finding=finding, kind=requirement_name)
        error = NotLinearError(message)
        error.finding = finding
        return Refused(error)

    # -- f on the driver --------------------------------------------------------------------

    def poll_local_evaluation(self) -> LocalEvaluation:
        """Wait briefly for the current call of the mapped function, or start the next one. Return the call.

        The driver calls the function on missing blocks, one at a time, until all results used for decoding
        have been checked.
        """
        latest = self.local_checks.latest
        if (
            latest is None
            or latest.block_index not in self._erasure_decoder.missing_indices
            or (self.local_checks.has_latest_result and not self.has_conclusive_checks)
        ):
            self.local_checks.start(self._choose_block_to_evaluate())
        return self.local_checks.poll()

    def _choose_block_to_evaluate(self) -> int:
        """Return the missing block to check next by calling the mapped function on it on the driver.

        Blocks for which a worker returned another shape come first. Otherwise, this is the block whose
        decoded result depends on the largest number of unchecked results.
        """
        decoder, unchecked_mask = self._erasure_decoder, self._find_unchecked_mask()
        scores = sum(
            decoder.get_weight_masks(dtype).count_invertible_weights(unchecked_mask)
            for dtype in self._decoder.result_dtypes()
        )
        mismatched_mask = self.local_checks.get_missing_block_mask(self._received.mismatched_blocks)
        scores = scores + self._block_sum_mask / 2 + self._coded_data.n * mismatched_mask
        scores[self.local_checks.checked_mask] = -1.0
        return int(decoder.missing_indices[np.argmax(scores)])

    # -- which results the checks involve ---------------------------------------------------

    def find_unchecked_tasks(self) -> tuple[int, ...]:
        """Return the tasks whose results are used but not covered by a check.

        If a worker returned garbage for one of these tasks, neither the parity checks nor the calls of the
        mapped function on the driver would reveal it.
        """
        arrived_indices = self._erasure_decoder.arrived_indices
        returned_mask = arrived_indices < len(self._code.systematic_indices)
        return tuple(arrived_indices[self._find_unchecked_mask(returned_mask)].tolist())

    def _find_unchecked_mask(self, include_mask: Mask | bool = False) -> Mask:
        """Return a boolean mask over the arrived results: True for used results that no check covers.

        A result is used if blocks are decoded from it, or if it is in `include_mask`.
        """
        decoder = self._erasure_decoder
        unchecked_mask = np.zeros(len(decoder.arrived_indices), bool)
        evaluated_mask = self.local_checks.checked_mask
        for dtype in set(self._decoder.result_dtypes()):
            weight_masks = decoder.get_weight_masks(dtype)
            checked_mask = weight_masks.compute_influential_arrivals(evaluated_mask)
            if self.parity_checks.residuals is not None:
                checked_mask |= error_detection.compute_checked_blocks_mask(decoder, dtype)
            unchecked_mask |= (weight_masks.used_arrivals_mask | include_mask) & ~checked_mask
        return unchecked_mask

    @property
    def has_conclusive_checks(self) -> bool:
        """Whether the completed checks suffice to accept the results.

        The checks must cover every result used for decoding. The mapped function f must also have been called
        on the driver if the parity checks hold even for an f that is not linear. This is the case if all
        results are equal, if each check only compares copies of a block, or if no worker receives a data
        block. The call is also required if the result of a data block had a different shape, which may be
        due to f itself.
        """
        local_results = self.local_checks.results
        if self._received.mismatched_blocks - local_results.keys() or (
            not self.has_check_of_block_sum and self._block_sum_mask.any()
        ):
            return False
        if not self.local_checks.checked_mask.all() and not self.has_differing_results():
            return False
        if not local_results and not len(self._code.systematic_indices):
            return False
        return not self._find_unchecked_mask().any()

    @property
    def has_check_of_block_sum(self) -> bool:
        """Whether any check involves a combination of several blocks.

        A parity block that merely copies a data block cannot show whether the mapped function is linear.
        """
        is_decoded = len(self._erasure_decoder.missing_indices) > 0
        if is_decoded and self._block_sum_mask[self.local_checks.checked_mask].any():
            return True
        dtypes = set(self._decoder.result_dtypes()) if self.parity_checks.residuals is not None else ()
        return any(
            error_detection.compute_max_blocks_per_parity_check(self._erasure_decoder, dtype) > 2
            for dtype in dtypes
        )

    @property
    def _block_sum_mask(self) -> Mask:
        """A boolean mask over the missing blocks: True if a block is not decoded by copying one result."""
        combination_mask = np.zeros(len(self._erasure_decoder.missing_indices), bool)
        for dtype in set(self._decoder.result_dtypes()):
            combination_mask |= self._erasure_decoder.get_weight_masks(dtype).recombined_results_mask
        return combination_mask

    def has_differing_results(self) -> bool:
        """Return whether results of different tasks differ by more than rounding errors.

        If all results are equal, parity checks cannot show whether the mapped function is linear.
        """
        return self._decoder.compute_once("has differing results", self._compare_received_results)

    def _compare_received_results(self) -> bool:
        """Compare all received results with the first one, and return whether any of them differs."""
        for leaf_index, dtype in enumerate(self._decoder.result_dtypes()):
            first, *others = self._received.get_flat_leaves_by_task(leaf_index).values()
            tolerance = 0.0
            if not is_integer_dtype(dtype):
                limiting_dtype = self._decoder.get_accuracy_limiting_dtype(dtype)
                tolerance = error_detection.compute_parity_check_tolerance(limiting_dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                if any((np.abs(r - first) > tolerance * np.abs(first).max(initial=0)).any() for r in others):
                    return True
        return False

    # -- accuracy ---------------------------------------------------------------------------

    def compute_error_bound(self) -> float:
        """Return a bound on the relative error that results may have even though all checks have passed.

        The error is relative to the largest value in an array. It may come from rounding errors, which
        decoding amplifies, and from one wrong result whose deviation is too small for the checks to tell it
        from rounding.
        """
        decoder, bound = self._erasure_decoder, 0.0
        residuals, local_checks, checked_blocks = self.parity_checks.residuals, self.local_checks, list[int]()
        if not local_checks.find_differing_blocks():
            checked_blocks = decoder.missing_indices[local_checks.checked_mask].tolist()
        distances_by_block = {index: local_checks.compute_distances(index) for index in checked_blocks}
        for leaf_index, dtype in enumerate(self._decoder.result_dtypes()):
            is_integer = is_integer_dtype(dtype)
            if is_integer and not decoder.decodes_integers_by_rounding:
                continue
            # Add an error of the size of rounding to the residual, because checks cannot detect it.
            rounding_unit = machine_epsilon(self._decoder.get_accuracy_limiting_dtype(dtype))
            residual = residuals.by_leaf[leaf_index] if residuals is not None else None
            residual = None if residual is None else residual + rounding_unit
            decoding_error = 0.0 if is_integer else self.amplification * rounding_unit
            undetected_by_block = {
                index: distances[leaf_index] + rounding_unit + decoding_error
                for index, distances in distances_by_block.items()
            }
            undetected_error = error_detection.bound_undetected_error(
                decoder.over(dtype), residual, undetected_by_block, len(self._code.systematic_indices)
            )
            decoded = [leaves[leaf_index] for leaves in self._decoder.decoded_results]
            max_magnitude = self.parity_checks.compute_max_magnitude(leaf_index, decoded)
            if max_magnitude:
                # A result that f rounds to integers may be off by 1/2. Decoding multiplies this by a weight.
                integer_rounding = 0.0
                if is_integer:
                    integer_rounding = 0.5 * decoder.max_weight_sum + 0.5
                max_received = self.parity_checks.compute_max_magnitude(leaf_index)
                error = undetected_error * max_received / max_magnitude
                bound = max(bound, error + decoding_error + integer_rounding / max_magnitude)
        return bound

    @property
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies rounding errors of floats."""
        return self._erasure_decoder.over(np.dtype(np.float64)).amplification
