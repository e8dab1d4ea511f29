"""Check results with redundant equations (parity checks), and locate a wrong result.

If more results have arrived than decoding needs, and the mapped function f is linear, then the results
satisfy linear equations up to rounding.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes import error_detection
from polarmap.codes.base import ErasureDecoder
from polarmap.driver.local_evaluation import LocalEvaluation, LocalEvaluator, copy_block
from polarmap.driver.options import MapOptions
from polarmap.driver.received_results import get_comparable_types_and_shapes
from polarmap.driver.result_decoder import NonFiniteResultError, ResultDecoder
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.worker.pytree import flatten, unflatten


class ParityResiduals(NamedTuple):
    """The residuals of parity checks, which measure how much the results violate the checks.

    Attributes
    ----------
    by_leaf : list of float or None
        The maximum relative residual for each array (leaf) of a result, or None if it is not decoded.
    is_violated : bool
        Whether any residual is too large to be explained by rounding errors.
    suspects : set of int or None
        The tasks whose result, if wrong, would explain all violations on its own. None if unknown.
    """

    by_leaf: list[float | None]
    is_violated: bool = False
    suspects: set[int] | None = None

    @property
    def max_residual(self) -> float:
        """The largest residual of all arrays."""
        return max((residual for residual in self.by_leaf if residual is not None), default=0.0)


class ParityChecks:
    """Evaluates parity checks, the redundant equations between the received results.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks, one per task.
    options : MapOptions
        The options of the map.
    decoder : ResultDecoder
        Provides the received results.
    evaluator : LocalEvaluator
        Calls the mapped function f on the driver.

    Attributes
    ----------
    residuals : ParityResiduals or None
        The latest residuals. None before the first evaluation, or if a result was rejected since then.
    """

    def __init__(
        self, coded_data: CodedData, options: MapOptions, decoder: ResultDecoder, evaluator: LocalEvaluator
    ) -> None:
        self._coded_data, self._options = coded_data, options
        self._decoder, self._received, self._evaluator = decoder, decoder.received, evaluator
        self.residuals: ParityResiduals | None = None
        self._checked_decoder: ErasureDecoder | None = None  # the decoder for which `residuals` were computed

        # For each array of a result, an estimate of the magnitude that it would have if no terms cancelled in
        # the sums that f computes. Rounding errors are relative to it. [] until the estimates are needed.
        self._uncancelled_magnitudes: list[float] = []

    def evaluate(self) -> ParityResiduals:
        """Return how much the received results violate the checks. Cached until another result arrives.

        Raises NonFiniteResultError if the results contain NaN or inf.
        """
        decoder = self._decoder.tracker.decoder
        if self.residuals is None or self._checked_decoder is not decoder:
            leaf_indices = range(len(self._decoder.result_dtypes()))
            received = [self._received.get_flat_leaves_by_task(leaf_index) for leaf_index in leaf_indices]
            self.residuals = self._measure_residuals(decoder, received)
            self._checked_decoder = decoder
        return self.residuals

    def evaluate_with_parity_block(self, parity_leaves: list[Array]) -> ParityResiduals:
        """Return how much the result of a parity block contradicts the received results of all data blocks.

        Parameters
        ----------
        parity_leaves : list of arrays
            The result of the mapped function for `densest_parity_block`, computed on the driver, as a list
            of its arrays.
        """
        received, code = self._received, self._coded_data.code
        data_leaves = received.by_task[min(received.by_task)].leaves
        if get_comparable_types_and_shapes(parity_leaves) != get_comparable_types_and_shapes(data_leaves):
            self.residuals, self._checked_decoder = ParityResiduals([np.inf], is_violated=True), None
            return self.residuals
        (parity_index, _), positions = self.densest_parity_block, np.arange(code.n)
        arrived_mask = (positions < len(code.systematic_indices)) | (positions == parity_index)
        decoder = code.make_decoder(arrived_mask, self._decoder.tracker.modular)
        flat_leaves = [np.ascontiguousarray(leaf_array).reshape(-1) for leaf_array in parity_leaves]
        flat_results = [
            received.get_flat_leaves_by_task(leaf_index) | {parity_index: leaf}
            for leaf_index, leaf in enumerate(flat_leaves)
        ]
        self.residuals, self._checked_decoder = self._measure_residuals(decoder, flat_results), decoder
        return self.residuals

    @cached_property
    def parity_evaluation(self) -> LocalEvaluation:
        """A call of the mapped function on `densest_parity_block`, started when this is first read."""
        return self._evaluator.start_on_block(self.densest_parity_block[0])

    @cached_property
    def densest_parity_block(self) -> tuple[int, int]:
        """The index of the parity block that combines the most data blocks, and their number."""
        k, code = len(self._coded_data.code.systematic_indices), self._coded_data.code
        if not code.has_uneven_parity:
            return k, code.k
        n_data_blocks = code.count_blocks_per_parity_block()
        return k + int(np.argmax(n_data_blocks)), int(n_data_blocks.max())

    def _measure_residuals(
        self, decoder: ErasureDecoder, received_by_leaf: list[dict[int, Array]]
    ) -> ParityResiduals:
        """Return how much results violate the parity checks of `decoder`.

        received_by_leaf : for each array of a result, its flattened values by task.
        """
        is_violated = False
        suspects: set[int] | None = None
        residual_by_leaf: list[float | None] = []
        for leaf_index, (received, dtype, max_error) in enumerate(
            zip(received_by_leaf, self._decoder.result_dtypes(), self.compute_leaf_error_bounds())
        ):
            if max_error == np.inf:
                residual_by_leaf.append(None)
                continue
            operands = decoder.transform_for_parity_checks(received)
            precision_dtype = self._decoder.get_accuracy_limiting_dtype(dtype)
            checks = decoder, operands, dtype, self._options.rtol, precision_dtype
            compute_residual = partial(error_detection.evaluate_parity_checks, *checks)
            leaf_residual = compute_residual(max_error)
            if len(leaf_residual.violations) and not is_integer_dtype(dtype):
                magnitudes = self._uncancelled_magnitudes or self._compute_uncancelled_magnitudes()
                self._uncancelled_magnitudes = magnitudes
                if magnitudes:
                    leaf_residual = compute_residual(max_error, magnitudes[leaf_index])
            if not leaf_residual.is_finite:
                raise NonFiniteResultError
            residual_by_leaf.append(leaf_residual.max_relative)
            if len(leaf_residual.violations):
                is_violated = True
                if decoder.n_redundant_checks > 1:
                    leaf_suspects = set(
                        error_detection.locate_erroneous_blocks(
                            decoder,
                            operands,
                            leaf_residual.violations,
                            dtype,
                            precision_dtype,
                            leaf_residual.violated_check_blocks,
                        )
                    )
                    suspects = leaf_suspects if suspects is None else suspects & leaf_suspects
        return ParityResiduals(residual_by_leaf, is_violated, suspects)

    # -- magnitudes -------------------------------------------------------------------------

    def compute_leaf_error_bounds(self) -> list[float]:
        """Return the maximum tolerated deviation from linearity for each array of a result."""
        compute_error_bounds = self._options.traits.error_bounds
        if compute_error_bounds is None:
            return [0.0] * len(self._received.first_received.leaves)
        return compute_error_bounds([outcome.leaves for outcome in self._received.by_task.values()])

    def compute_max_magnitude(self, leaf_index: int, arrays: list[Array] | None = None) -> float:
        """Return the magnitude relative to which rounding errors in a result array (leaf) are measured.

        This is the largest absolute value in the array. If terms cancel in the sums that the mapped function
        computes, it is the magnitude that the array would have without cancellation, provided it is known.

        Parameters
        ----------
        leaf_index : int
            The position of the array in each result.
        arrays : list of arrays, optional
            The values of this array in several results, by default the received ones.
        """
        if arrays is not None:
            max_abs = error_detection.compute_max_abs(arrays)
        else:
            compute = partial(self._compute_max_received_magnitude, leaf_index)
            max_abs = self._decoder.compute_once(("max magnitude", leaf_index), compute)
        return max([max_abs, *self._uncancelled_magnitudes[leaf_index : leaf_index + 1]])

    def _compute_max_received_magnitude(self, leaf_index: int) -> float:
        """Return the largest absolute value of a leaf in the received results."""
        outcomes = self._received.by_task.values()
        return error_detection.compute_max_abs([outcome.leaves[leaf_index] for outcome in outcomes])

    def _compute_uncancelled_magnitudes(self) -> list[float]:
        """Estimate how large the arrays of a result would be if no products cancelled in sums.

        Rounding errors of the mapped function f are relative to these magnitudes. They can be estimated only
        if f is one of polarmap's own matrix products: f is called on the driver with a block whose signs are
        random, so that the products do not cancel. Returns [] for other functions.
        """
        if not self._options.traits.is_rowwise:
            return []
        block_index, _ = self.densest_parity_block
        build_block = partial(self._build_block_with_random_signs, block_index)
        leaves = self._evaluator.wait_for_result_arrays(self._evaluator.start(build_block, block_index)) or []
        return [error_detection.compute_max_abs([leaf]) for leaf in leaves]

    def _build_block_with_random_signs(self, block_index: int) -> Any:
        """Return a copy of a coded block in which all floats have random signs.

        Integers, such as indices, are unchanged.
        """
        leaves, structure = flatten(copy_block(self._coded_data, block_index))
        rng = np.random.default_rng(0)
        for leaf in leaves:
            if not is_integer_dtype(leaf.dtype):
                leaf *= rng.choice(np.array([-1, 1], leaf.dtype), leaf.shape)
        return unflatten(structure, leaves)
