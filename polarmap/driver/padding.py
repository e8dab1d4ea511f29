"""Find out how padding the last block of an array with rows of zeros affects the mapped function f.

The last block is padded if the number of rows is not a multiple of the number of blocks. The task of that
block also calls f without the padding. If this result is missing, it can be decoded in two cases: f returns
one row for each row, so that the rows of the padding can be cut off, or rows of zeros make no difference to
f, as in a sum over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import find_divisors_near
from polarmap.driver.function_properties import FunctionProperty
from polarmap.driver.local_checks import leaves_agree
from polarmap.driver.local_evaluation import LocalEvaluation
from polarmap.driver.options import MapOptions
from polarmap.driver.result_decoder import find_accuracy_limiting_dtype
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.errors import CodeError
from polarmap.executors.interface import TaskResult
from polarmap.worker.pytree import Shape, unflatten

PADDING_PROPERTY = "what rows of zeros do to f"  # cached for each number of data rows in the block
# The mapped function is called on a few rows to find out how padding affects it. These values replace rows of
# zeros among them.
SAMPLE_VALUES = np.arange(1, 8)
# Row i of these rows is multiplied by 1 + ROW_FACTOR_STEP * i**2, so that they hardly ever cancel in sums.
ROW_FACTOR_STEP = 0.25


class PaddingEffect(Enum):
    """The effect that appending rows of zeros to a block has on one array of the mapped function's result."""

    ROWWISE = "one row of the result for each row of the block"
    NO_EFFECT = "rows of zeros make no difference"
    CHANGES_RESULT = "the result differs"


class KnownPaddingEffects(NamedTuple):
    """The effects of zero-padding a block of a certain shape on a function's results, from an earlier map.

    Attributes
    ----------
    effects : tuple of PaddingEffect
        The effect on each array of a result of the function f.
    has_equal_bits : bool
        Whether f returned bitwise equal values for the rows of data with and without padding.
    """

    effects: tuple[PaddingEffect, ...]
    has_equal_bits: bool = False

    @property
    def can_trim_padding(self) -> bool:
        """Whether trimming the result with padding gives the exact result without padding."""
        return self.has_equal_bits and set(self.effects) == {PaddingEffect.ROWWISE}


class PaddingAnalyzer:
    """Determines how the zero rows that pad the last block of a map affect the mapped function f.

    While the map runs, the driver calls f on two rows of a block, on four rows, and on two rows followed by
    two rows of zeros. If the padded block has a single row of data, f is called on one row and on three
    rows instead. Later maps of the same function on blocks of the same shape share this trial.

    Parameters
    ----------
    f : callable
        The mapped function, as workers call it.
    coded_data : CodedData
        The blocks, the last of which is padded.
    options : MapOptions
        The options of the map, and the known properties of f.
    is_stored : bool
        Whether results are written to storage, where all blocks must have the same size.

    Attributes
    ----------
    task_index, n_rows : int
        The number of the padded block, and its number of data rows.
    is_evaluated_unpadded : bool
        Whether the task of that block also calls f without the padding. It does not if each row of the result
        is known to depend on one row of the block only, if results are written to storage, or if no worker
        receives a data block.
    """

    def __init__(
        self, f: Callable[[Any], Any], coded_data: CodedData, options: MapOptions, is_stored: bool = False
    ) -> None:
        padded_block = coded_data.data_blocks.padded_block
        assert padded_block is not None
        self.task_index, self.n_rows = padded_block
        self._coded_data, self._data_blocks, self._rtol = coded_data, coded_data.data_blocks, options.rtol
        self._is_rowwise = options.traits.is_rowwise
        self._check_blocks_not_empty()
        self._wait_started_at: float | None = None
        property_name = f"{PADDING_PROPERTY} of {self.n_rows} rows"
        argument_layout = self._data_blocks.argument_layout
        self._function_property = FunctionProperty(f, property_name, argument_layout, self._is_rowwise)
        self._known_effects: KnownPaddingEffects | None = (
            None if self._is_rowwise else self._function_property.value
        )
        can_trim_padding = self._is_rowwise or (
            self._known_effects is not None and self._known_effects.can_trim_padding
        )
        self._is_stored, self._has_data_tasks = is_stored, len(coded_data.code.systematic_indices) > 0
        self.is_evaluated_unpadded = not can_trim_padding and not is_stored and self._has_data_tasks
        self._effects: tuple[PaddingEffect, ...] | None = None
        self._evaluation: LocalEvaluation | None = None
        self._f = f

    def start_trial_evaluation(self) -> None:
        """Start a trial of the mapped function on a few rows, unless the effects of padding are known."""
        if not self._is_rowwise and self._known_effects is None:
            f = self._f
            self._evaluation = LocalEvaluation(lambda blocks: tuple(map(f, blocks)), self._build_trial_blocks)

    def _check_blocks_not_empty(self) -> None:
        """Raise CodeError if the data is a stored array with empty blocks."""
        if self.n_rows <= 0:
            raise CodeError(
                f"the {self._data_blocks.k} blocks of the coded array hold {self._n_data_rows} rows in "
                f"blocks of {self._data_blocks.rows_per_block}, so that some are empty: encode it again"
            )

    @property
    def _n_data_rows(self) -> int:
        """The number of rows of the data."""
        rows_per_block = self._data_blocks.rows_per_block
        assert rows_per_block is not None
        return self._data_blocks.k * rows_per_block - self._data_blocks.n_padding_rows

    # -- what f does ------------------------------------------------------------------------

    def poll(self, now: float) -> None:
        """Wait briefly for the trial calls of the mapped function, which show how padding affects it.

        The first call records `now` as the start of the wait.
        """
        if self._wait_started_at is None:
            self._wait_started_at = now
        if self._evaluation is not None:
            self._evaluation.poll()

    def is_trial_wait_over(self, now: float, max_wait_seconds: float) -> bool:
        """Return whether to stop waiting for the trial calls that show how padding affects the function.

        This is the case once they are over, or `max_wait_seconds` after the first call of `poll`.
        """
        if self.has_known_effects:
            return True
        return self._wait_started_at is not None and now - self._wait_started_at > max_wait_seconds

    def wait_for_padding_effects(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the trial calls that show how padding affects the function."""
        if self._evaluation is not None:
            self._evaluation.wait_for_result_arrays(timeout)

    @property
    def has_known_effects(self) -> bool:
        """Whether the trial calls that show how padding affects the function are over or not needed."""
        return self._evaluation is None or not self._evaluation.is_running

    def get_padding_effects(self, result_shapes: Sequence[Shape]) -> tuple[PaddingEffect, ...]:
        """Return the effect of padding on each array of a result, given the shapes of these arrays.

        An effect that is not known yet is reported as CHANGES_RESULT.
        """
        if self._effects is None or len(self._effects) != len(result_shapes):
            effects = self._find_measured_effects(len(result_shapes))
            if effects is None:
                return (PaddingEffect.CHANGES_RESULT,) * len(result_shapes)
            self._effects = effects
        return tuple(
            effect if self._is_effect_valid_for_shape(effect, shape) else PaddingEffect.CHANGES_RESULT
            for effect, shape in zip(self._effects, result_shapes)
        )

    def _is_effect_valid_for_shape(self, effect: PaddingEffect, result_shape: Shape) -> bool:
        """Return whether an effect found in calls on a few rows also applies to results of this shape."""
        if effect is PaddingEffect.ROWWISE:
            return result_shape[:1] == (self._data_blocks.rows_per_block,)
        return self._data_blocks.has_zero_padding

    def _find_measured_effects(self, n_leaves: int) -> tuple[PaddingEffect, ...] | None:
        """Return the effect of padding on each of the `n_leaves` arrays of a result, or None if unknown."""
        if self._is_rowwise:
            return (PaddingEffect.ROWWISE,) * n_leaves
        if self._known_effects is not None:
            effects = self._known_effects.effects
            return effects if len(effects) == n_leaves else (PaddingEffect.CHANGES_RESULT,) * n_leaves
        leaves = None if self._evaluation is None else self._evaluation.leaves
        if leaves is None:
            return None
        if len(leaves) != 3 * n_leaves:
            return (PaddingEffect.CHANGES_RESULT,) * n_leaves
        trial_results = zip(leaves[:n_leaves], leaves[n_leaves : 2 * n_leaves], leaves[2 * n_leaves :])
        return tuple(self._classify_padding_effect(*results) for results in trial_results)

    def _classify_padding_effect(
        self,
        few_rows_result: Array,
        more_rows_result: Array,
        padded_result: Array,
    ) -> PaddingEffect:
        """Return the effect on one array of the result, given its values in the three calls of the trial.

        These are calls on a few rows, on a few more rows, and on the few rows followed by rows of zeros.
        """
        finite_values = np.zeros(0)
        if more_rows_result.dtype.kind in "iufc":
            finite_values = more_rows_result[np.isfinite(more_rows_result)]
        max_magnitude = float(np.abs(finite_values).max(initial=0))
        n_few_rows, n_more_rows = self._trial_row_counts
        row_counts = few_rows_result.shape[:1], more_rows_result.shape[:1]
        if row_counts == ((n_few_rows,), (n_more_rows,)) and self._leaves_agree(
            few_rows_result, more_rows_result[:n_few_rows], max_magnitude
        ):
            return PaddingEffect.ROWWISE
        # If the result of a few rows is empty, as for block[10:], it shows nothing about more rows.
        has_same_shape = few_rows_result.shape == padded_result.shape and few_rows_result.size > 0
        if has_same_shape and self._leaves_agree(few_rows_result, padded_result, max_magnitude):
            return PaddingEffect.NO_EFFECT
        return PaddingEffect.CHANGES_RESULT

    def _leaves_agree(self, leaf: Array, other_leaf: Array, max_magnitude: float = 0.0) -> bool:
        limiting_dtype = find_accuracy_limiting_dtype(leaf.dtype, self._data_blocks.dtypes)
        return leaves_agree(leaf, other_leaf, limiting_dtype, self._rtol, 1.0, max_magnitude, 0.0)

    @property
    def _trial_row_counts(self) -> tuple[int, int]:
        """The two numbers of rows for the trial: 2 and 4, or less if the padded block has fewer rows.

        The mapped function may treat a single row differently, for example squeeze it. So the smaller number
        is 1 if and only if the padded block has a single row of data.
        """
        rows_per_block = self._data_blocks.rows_per_block
        assert rows_per_block is not None
        n_few_rows = min(2, self.n_rows)
        return n_few_rows, min(n_few_rows + 2, rows_per_block)

    def _build_trial_blocks(self) -> tuple[Any, Any, Any]:
        """Return the inputs of the trial: a few rows, a few more rows, and the few rows padded with zeros.

        The rows come from the data. A row of zeros is replaced with made-up values, because it would not show
        the effect of padding. All rows of stored data are replaced too, because reading them takes too long.
        """
        n_few_rows, n_more_rows = self._trial_row_counts
        if self._coded_data.location is None:
            leaves = self._data_blocks.sample_rows(n_more_rows)
        else:
            leaves = [
                np.zeros((n_more_rows, *shape[1:]), dtype_name)
                for dtype_name, shape in self._coded_data.block_layout(0)
            ]
        if len(leaves) == 1:  # The rows are dense: sparse rows have three leaves.
            leaves = [_make_rows_distinguishable(leaves[0])]
        cut_rows, structure = self._data_blocks.copy_padded_rows, self._coded_data.structure
        row_counts = ((n_few_rows, n_few_rows), (n_more_rows, n_more_rows), (n_few_rows, n_more_rows))
        few_rows, more_rows, padded_rows = (
            unflatten(structure, cut_rows(leaves, *counts)) for counts in row_counts
        )
        return few_rows, more_rows, padded_rows

    # -- what follows from that -------------------------------------------------------------

    def record_padding_effects(
        self,
        padded_leaves: list[Array] | None,
        unpadded_result: TaskResult | None,
    ) -> None:
        """Cache the effects of padding for later maps of the same function.

        Parameters
        ----------
        padded_leaves : list of arrays or None
            The function's result for the block with padding, or None if its task has not returned it.
        unpadded_result : TaskResult or None
            The function's result for the block without padding, or None if its task has not returned it.
        """
        if self._is_rowwise:
            return
        known_effects = self._known_effects
        if known_effects is None and self._evaluation is not None and self._evaluation.leaves is not None:
            effects = self._find_measured_effects(len(self._evaluation.leaves) // 3)
            known_effects = None if effects is None else KnownPaddingEffects(effects)
        if known_effects is None:
            return
        if (
            padded_leaves is not None
            and unpadded_result is not None
            and _has_equal_bits(padded_leaves, unpadded_result, self.n_rows)
        ):
            known_effects = known_effects._replace(has_equal_bits=True)
        if known_effects != self._known_effects:
            self._function_property.remember_value(known_effects)

    def raise_if_padding_prevents_decoding(self, effects: Sequence[PaddingEffect]) -> None:
        """Raise CodeError if padding changes the result and no worker returns a result without padding."""
        if PaddingEffect.CHANGES_RESULT not in effects or self._is_rowwise:
            return
        if self._is_stored:
            reason = "results that stay in storage are blocks of equal size"
        elif not self._has_data_tasks:
            reason = "no worker gets a block of the data as it is"
        elif not self.is_evaluated_unpadded:
            reason = "they did not in an earlier map: f is not deterministic"
        else:
            return
        effect_text = "change the result of f" if self.has_known_effects else "may change the result of f"
        raise CodeError(
            f"{self.padded_block_description}. These {effect_text}, and {reason}. {self.block_count_advice}"
        )

    @property
    def padded_block_description(self) -> str:
        """A description of the padded block for error messages."""
        return (
            f"{self._n_data_rows} rows do not divide into {self._data_blocks.k} blocks, so the last one has "
            f"{self.n_rows} of {self._data_blocks.rows_per_block} rows and is filled up with rows of zeros"
        )

    @property
    def block_count_advice(self) -> str:
        """Advice for error messages: which numbers of blocks require no padding."""
        blocks_options = " or ".join(
            f"blocks={n_blocks}" for n_blocks in find_divisors_near(self._n_data_rows, self._data_blocks.k)
        )
        return (
            f"Use {blocks_options}, which divides them"
            if blocks_options
            else "Use a number of rows that divides"
        )

    def is_unpadded_result_consistent(
        self,
        padded_leaves: Sequence[Array],
        unpadded_leaves: Sequence[Array],
        effects: Sequence[PaddingEffect],
    ) -> bool:
        """Return whether the results with and without padding agree, up to rounding."""
        if PaddingEffect.CHANGES_RESULT in effects or len(padded_leaves) != len(unpadded_leaves):
            return False
        trimmed_leaves = self.trim_padding(padded_leaves, effects)
        return all(map(self._leaves_agree, trimmed_leaves, unpadded_leaves))

    def trim_padding(self, leaves: Sequence[Array], effects: Sequence[PaddingEffect]) -> list[Array]:
        """Remove the rows that come from padding from the arrays of a result, and return the arrays."""
        leaf_effects = zip(leaves, effects, strict=True)
        return [
            leaf[: self.n_rows] if effect is PaddingEffect.ROWWISE else leaf for leaf, effect in leaf_effects
        ]


def _make_rows_distinguishable(rows: Array) -> Array:
    """Multiply each row by a different factor, so that a function's result shows whether it mixes rows.

    NaN, inf and zero rows are first replaced with other values.
    """
    sample_rows = np.resize(SAMPLE_VALUES, rows.shape).astype(rows.dtype)
    axes = tuple(range(1, rows.ndim))
    is_zero = ~np.asarray(rows != 0).any(axis=axes, keepdims=True)
    rows = np.where(is_zero | ~np.isfinite(rows), sample_rows, rows)
    squares = np.square(np.arange(len(rows))).reshape(-1, *[1] * len(axes))
    factors = 1 + squares if is_integer_dtype(rows.dtype) else 1 + ROW_FACTOR_STEP * squares
    return np.asarray(rows * factors.astype(rows.dtype))


def _has_equal_bits(padded_leaves: Sequence[Array], unpadded_result: TaskResult, n_rows: int) -> bool:
    """Return whether the first `n_rows` rows of a result are bitwise equal to the result without padding."""
    if len(padded_leaves) != len(unpadded_result.leaves):
        return False
    return all(
        padded_leaf.ndim
        and padded_leaf.dtype == unpadded_leaf.dtype
        and padded_leaf[:n_rows].shape == unpadded_leaf.shape
        and padded_leaf[:n_rows].tobytes() == unpadded_leaf.tobytes()
        for padded_leaf, unpadded_leaf in zip(padded_leaves, unpadded_result.leaves)
    )
