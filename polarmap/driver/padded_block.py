"""Obtain the result of the last block of a map if that block was padded with rows of zeros.

If the number of rows of an array is not a multiple of the number of blocks, the last block is padded. Its
result without padding either comes from its worker, or is derived from the result with padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polarmap.driver.collector import JobTimer, WaitLimits
from polarmap.driver.padding import PaddingAnalyzer, PaddingEffect
from polarmap.driver.received_results import ReceivedResults
from polarmap.dtypes import Array
from polarmap.worker.pytree import unflatten


class PaddedBlock:
    """Obtains the result of a padded block: from its worker, or by decoding it and removing the padding.

    A padded block is the last block of an array, with rows of zeros that make it as long as the others.

    Parameters
    ----------
    analyzer : PaddingAnalyzer
        Determines how zero rows affect the result of the mapped function f. Its trial of f on a few rows is
        started here.
    received : ReceivedResults
        The results that have arrived, which may include the result of the block without its padding.
    limits : WaitLimits
        Limits how long the map waits for the trial.
    timer : JobTimer
        The time since the start of the map.

    Attributes
    ----------
    analyzer : PaddingAnalyzer
        The analyzer passed to the constructor.
    task_index : int
        The number of the padded block and of its task.
    """

    def __init__(
        self, analyzer: PaddingAnalyzer, received: ReceivedResults, limits: WaitLimits, timer: JobTimer
    ) -> None:
        self.analyzer, self._received, self._limits, self._timer = analyzer, received, limits, timer
        self.task_index = analyzer.task_index
        self._was_awaited = False  # whether the map had to wait for this result alone
        analyzer.start_trial_evaluation()

    @property
    def effects(self) -> tuple[PaddingEffect, ...]:
        """The effect of zero-padding on each array of the result.

        An effect that is not known yet is reported as CHANGES_RESULT.
        """
        return self.analyzer.get_padding_effects(self._received.leaf_shapes)

    # -- while the map runs -----------------------------------------------------------------

    @property
    def has_unpadded_result(self) -> bool:
        """Whether the task has returned the result of the mapped function for the block without padding."""
        return self._received.unpadded_result is not None

    @property
    def must_be_awaited(self) -> bool:
        """Whether the map must wait for the task because the result without padding cannot be decoded."""
        return (
            not self.has_unpadded_result
            and self.analyzer.is_evaluated_unpadded
            and self._is_trial_wait_over
            and PaddingEffect.CHANGES_RESULT in self.effects
        )

    @property
    def _is_trial_wait_over(self) -> bool:
        return self.analyzer.is_trial_wait_over(
            self._timer.elapsed_seconds, self._limits.redundancy_wait_seconds
        )

    def poll(self, is_accepted: bool) -> None:
        """Wait briefly for the trial that determines how padding affects the mapped function, if needed.

        In the trial, the driver calls the function on a few rows with and without padding. This method is
        called when all other results have arrived or can be decoded.

        Parameters
        ----------
        is_accepted : bool
            Whether all other results have been accepted.
        """
        if not self.has_unpadded_result and (is_accepted or self.analyzer.is_evaluated_unpadded):
            self.analyzer.poll(self._timer.elapsed_seconds)

    def try_settle(self) -> bool:
        """Check whether the result of this block has arrived or can be decoded.

        Called once all other results have been accepted. Raises CodeError if neither can happen any more.
        """
        if self.has_unpadded_result:
            return True
        if not self._is_trial_wait_over:
            return False
        effects = self.effects
        self.analyzer.raise_if_padding_prevents_decoding(effects)
        if PaddingEffect.CHANGES_RESULT not in effects:
            return True
        self._was_awaited = True
        return False

    def wait_for_effects(self) -> None:
        """Wait, for a limited time, for the trial that determines how padding affects the mapped function.

        In the trial, the driver calls the function on a few rows with and without padding. This method
        returns at once if the result without padding has arrived.
        """
        if not self.has_unpadded_result:
            self.analyzer.wait_for_padding_effects(self._limits.local_evaluation_timeout)

    # -- when it is over --------------------------------------------------------------------

    def build_result(
        self, padded_leaves: list[Array], transform: Callable[[Array], Array] | None = None
    ) -> Any:
        """Return the result of the block without its padding.

        Parameters
        ----------
        padded_leaves : list of arrays
            The arrays of the result with padding, which are trimmed if the worker has not returned a result
            without padding.
        transform : callable, optional
            Applied to each array of a result that the worker returned without padding.
        """
        unpadded_result = self._received.unpadded_result
        if unpadded_result is None:
            return unflatten(
                self._received.structure, self.analyzer.trim_padding(padded_leaves, self.effects)
            )
        unpadded_leaves = unpadded_result.leaves
        return unflatten(
            unpadded_result.structure,
            unpadded_leaves if transform is None else list(map(transform, unpadded_leaves)),
        )

    def add_unchecked_task(self, unchecked_tasks: tuple[int, ...]) -> tuple[int, ...]:
        """Return `unchecked_tasks`, plus this task if its result without padding is unchecked."""
        unpadded_result = self._received.unpadded_result
        if unpadded_result is None or self.task_index in unchecked_tasks:
            return unchecked_tasks
        padded_outcome = self._received.by_task.get(self.task_index)
        if padded_outcome is not None and self.analyzer.is_unpadded_result_consistent(
            padded_outcome.leaves, unpadded_result.leaves, self.effects
        ):
            return unchecked_tasks
        return tuple(sorted({*unchecked_tasks, self.task_index}))

    @property
    def result_source(self) -> str:
        """How the result was obtained, for the report field `last_block`: for example, "rows cut off"."""
        if self.has_unpadded_result:
            return "awaited" if self._was_awaited else "own rows"
        effects = self.effects
        if PaddingEffect.CHANGES_RESULT in effects:
            return "estimated"
        return "rows cut off" if PaddingEffect.ROWWISE in effects else "zeros ignored"

    def cache_padding_effects(self) -> None:
        """Cache the effect of padding for later maps of the same function."""
        outcome = self._received.by_task.get(self.task_index)
        self.analyzer.record_padding_effects(outcome and outcome.leaves, self._received.unpadded_result)
