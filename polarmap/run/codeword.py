"""The codeword of a map: what it needs of its tasks, when it is over, and what its report tells of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from functools import cached_property
from math import inf
from typing import Any, NoReturn

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.base import ErasureDecoder
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, NotLinearError, warn
from polarmap.executors.interface import read_only_view
from polarmap.run.acceptance import AS_A_PLAIN_MAP, Acceptance
from polarmap.run.loop import Stopwatch
from polarmap.run.options import MapOptions
from polarmap.run.padding import Padding, PaddingEffect
from polarmap.run.received import NotFiniteError, Received
from polarmap.run.reports import LazyReport
from polarmap.run.results import CodedResult
from polarmap.run.shortfall import NOT_FINITE, as_raised, late, not_finite, raised_too_often, too_few
from polarmap.run.tasks import TaskTable
from polarmap.worker.pytree import unflatten
from polarmap.worker.task_records import ResultRef

MOST_TRIALS = 4  # decodings of which it is remembered whether they are possible
LASTING_REFUSALS = NotLinearError, CodeError  # each ends a map whose data tasks do not all report
SETTLE_SECONDS = 0.25  # between looks whether it is time to do without what is waited for, at most


class Codeword(Received):
    """The `Need` of a coded map: over when its results are accepted.

    Parameters
    ----------
    padding : of the last block; None if there is none.
    driver_f : what f is on the driver.

    Attributes
    ----------
    refusal : NotFiniteError, NotLinearError, CodeError or None
        Why nothing can be decoded from these results, so that every data task has to report.
    """

    def __init__(
        self,
        padding: Padding | None,
        driver_f: Callable[[Any], Any],
        coded: CodedData,
        options: MapOptions,
        tasks: TaskTable,
        watch: Stopwatch,
    ) -> None:
        super().__init__(driver_f, coded, options, tasks, watch)
        self.refusal: NotFiniteError | NotLinearError | CodeError | None = None
        self._refused: ErasureDecoder | None = (
            None  # the decoding that was refused, which a further result changes
        )
        self.padding = padding
        if padding is not None:
            padding.begin()
        self._was_awaited = False  # the task of the block that is filled up, when the others were determined
        self._earlier_encoding = coded.encode_seconds  # by other maps of the same blocks
        self._has_warned = False
        self._trials: dict[Any, bool] = {}  # of what decodings were tried, and whether they are possible

    def step(self) -> bool:
        """Whether the map is over, after another look at the results."""
        if self.coded.parity_warning and not self._has_warned:  # known when blocks have been encoded
            self._has_warned = True
            warn(self.coded.parity_warning)
        if self._is_accuracy_hopeless():
            self.accept()
        self.verification = self.verification or self._verdict()
        if self.verification is None or not self._has_result_of_short_block():
            return False
        self.warn_if_inaccurate()
        return True

    def warn_if_inaccurate(self) -> None:
        """Say that results are not what `rtol` asks for."""
        if self.is_inaccurate:
            warn(
                "what arrived determines the other results, but no more accurately than to "
                f"{self.checks.error_bound():.2g} (relative), which is more than rtol: no further result came"
            )

    def _verdict(self) -> str | None:
        """How the results were verified, once they are determined and that is settled.

        Results that contradict each other, or do not determine an integer, are looked at again with every
        further one: it may tell who is to blame, or determine the integer.
        """
        if not self.results:
            return None
        decoder = self.decoder
        if len(decoder.missing_indices) and self.has_all_data(self.results):
            return self._as_a_plain_map_without_padding()
        if isinstance(self.refusal, LASTING_REFUSALS) and self._refused is not decoder.decoder:
            self.refusal = None
        if not decoder.is_ready or (self.refusal is not None and len(decoder.missing_indices)):
            return None
        try:
            how = self.checks.verified() if len(decoder.missing_indices) else self._as_a_plain_map()
            if how is not None:
                self.decode()
            return how
        except NotFiniteError as error:
            if not len(decoder.code.systematic_indices):  # no more results would help
                raise NotDecodableError("results contain NaN or inf, so nothing can be decoded") from error
            self.refusal = error
        except NotLinearError as error:
            if (
                not len(decoder.code.systematic_indices)
                or self.options.known.fits
                or self.options.verify is True
            ):
                raise
            self.refusal, self._refused = error, self.decoder.decoder
        except CodeError as error:  # parity of integers that wraps does not determine what is missing
            if not (len(self.decoder.missing_indices) and len(decoder.code.systematic_indices)):
                raise
            self.refusal, self._refused = error, self.decoder.decoder
        return None

    def _as_a_plain_map(self) -> str | None:
        """Every data task reported: nothing has to be decoded, whatever f is.

        On first use one parity equation is looked at all the same: better a warning now than an error
        when a worker is missing.
        """
        if self.refusal is not None:
            self.needed = self.decoder.n_arrived
        is_asked = self.is_first_use or ("checks" in vars(self) and self.checks.broken)
        if is_asked and not isinstance(self.refusal, NotFiniteError):
            try:
                if not self.checks.is_protected():
                    return None
            except NotLinearError as error:
                if self.options.verify is True:
                    raise
                warn(f"{AS_A_PLAIN_MAP}, but {error}")
            except NotFiniteError as error:
                self.refusal = error
        return "not needed"

    def _as_a_plain_map_without_padding(self) -> str:
        """Take the results of all data tasks, of which one has no result of its block with rows of zeros."""
        self.decoded = [
            getattr(self.results.get(index), "leaves", []) for index in range(self._code.n_targets)
        ]
        if self.options.verify is True:
            warn("f could not be verified: it raised an exception, or gave another shape, of rows of zeros")
        return "not needed"

    @cached_property
    def checks(self) -> Acceptance:
        """What checks results: made when it is asked for, as a map that decodes nothing needs none."""
        # Without a circle: the blocks are to be gone as soon as their map is over.
        return Acceptance(weakref.proxy(self))

    # -- the block that rows of zeros fill up -----------------------------------------------

    @property
    def padding_effects(self) -> tuple[PaddingEffect, ...]:
        """What rows of zeros do to each array of the results; nothing where there are none."""
        if self.padding is None:
            return ()
        first = self._any_received
        shapes = (
            first.leaf_shapes if first.result_ref is None else [shape for _, shape in first.result_ref.layout]
        )
        return self.padding.effects(self.precision, shapes)

    def _has_result_of_short_block(self) -> bool:
        """Return whether the result of the block that is filled up is here, or can be decoded.

        CodeError if it can be neither.
        """
        padding = self.padding
        if padding is None or self.unpadded is not None:
            return True
        if not padding.is_over(self.watch.elapsed, self.surplus_wait):
            return False
        effects = self.padding_effects
        padding.refuse_to_decode(effects)
        self._was_awaited = self._was_awaited or PaddingEffect.CHANGES in effects
        return PaddingEffect.CHANGES not in effects

    @property
    def awaited_task(self) -> int | None:
        """The task of the block that is filled up, if only its result is missing, which cannot be decoded."""
        padding = self.padding
        if padding is None or self.unpadded is not None or not padding.is_evaluated_apart:
            return None
        if self.ready_at is None or (self.refusal is not None and self.verification is None):
            return None
        is_known = padding.is_over(self.watch.elapsed, self.surplus_wait)
        return padding.task if is_known and PaddingEffect.CHANGES in self.padding_effects else None

    def worth_retrying(self, failed: Collection[int]) -> Collection[int]:
        """Return which failed tasks may be started again: the awaited one alone, if there is one."""
        awaited = self.awaited_task
        return failed if awaited is None else [index for index in failed if index == awaited]

    def _give_up_on_short_block(self, task: int) -> NoReturn:
        """Raise what f raised of the rows of that block, or that its task was lost too often."""
        padding = self.padding
        assert padding is not None
        failure = self.tasks[task].last_failure
        what = f"task {task} of {self._code.n}: {padding.described}"
        if failure is not None and failure.kind == "raised":
            raise as_raised(what, failure)
        self.give_up(
            NotDecodableError(
                f"{what}. Rows of zeros change the result of f, so this one cannot be decoded, and its task "
                f"failed: {failure}. Raise retries=, or {padding.advice.lower()}"
            )
        )

    def _result_of_short_block(
        self, leaves: list[Array], as_seen: Callable[[Array], Array] | None = None
    ) -> Any:
        """Return the result of the block that is filled up; `leaves`: those of its result with padding."""
        if self.unpadded is not None:
            own = self.unpadded.leaves if as_seen is None else list(map(as_seen, self.unpadded.leaves))
            return unflatten(self.unpadded.structure, own)
        padding = self.padding
        assert padding is not None
        return unflatten(self.structure, padding.without_rows(leaves, self.padding_effects))

    def _unchecked(self) -> tuple[int, ...]:
        """Return the results that no check involves, among them that without padding if none does."""
        found, padding = self.checks.unchecked(), self.padding
        if padding is None or self.unpadded is None or padding.task in found:
            return found
        symbol = self.results.get(padding.task)
        is_seen = symbol is not None and padding.fits(
            self.precision, symbol.leaves, self.unpadded.leaves, self.padding_effects
        )
        return found if is_seen else tuple(sorted({*found, padding.task}))

    def _how_short_block_came(self) -> str:
        """Return the field of the report that tells it."""
        if self.padding is None:
            return ""
        if self.unpadded is not None:
            return "awaited" if self._was_awaited else "own rows"
        if PaddingEffect.CHANGES in self.padding_effects:
            return "estimated"
        return "rows cut off" if PaddingEffect.ADDS_ROWS in self.padding_effects else "zeros ignored"

    def _note_padding(self) -> None:
        """Remember what rows of zeros do to f."""
        if self.padding is not None:
            outcome = self.results.get(self.padding.task)
            self.padding.note(self.precision, outcome and outcome.leaves, self.unpadded)

    # ---------------------------------------------------------------------------------------

    @property
    def stored(self) -> dict[int, ResultRef]:
        """Where those results lie that stayed in storage, of which what is received are samples."""
        return {index: one.result_ref for index, one in self.results.items() if one.result_ref is not None}

    # -- before all is there ----------------------------------------------------------------

    def early_result(self, task: int) -> Callable[[], Any] | None:
        """The result of a data block, as its worker returned it; None if it is none, or may have padding.

        It may be decoded from still: nobody is to write to it.
        """
        received, k = self.results.get(task), len(self._code.systematic_indices)
        if self.unpadded is not None and task == k - 1:
            return lambda: self._result_of_short_block([], read_only_view)
        if received is None or task >= k or (self.coded.data_blocks.n_padding_rows and task == k - 1):
            return None
        structure, leaves = received.structure, received.leaves
        return (
            None if received.result_ref else lambda: unflatten(structure, list(map(read_only_view, leaves)))
        )

    def result(self, report: LazyReport) -> CodedResult[Any]:
        """What was decoded, as the caller of the map gets it."""
        return self.result_of(self.decoded, report)

    def result_of(
        self,
        results: list[list[Array]],
        report: LazyReport,
        as_seen: Callable[[Array], Array] | None = None,
    ) -> CodedResult[Any]:
        """Return results of data blocks as the caller gets them, each array `as_seen`, without padding."""
        structure = self.structure
        if as_seen is not None:
            results = [list(map(as_seen, leaves)) for leaves in results]
        whole = results if self.padding is None else results[: self.padding.task]
        found = [unflatten(structure, leaves) for leaves in whole]
        if self.padding is not None:
            found.append(self._result_of_short_block(results[-1], as_seen))
        return CodedResult(found, report)

    @property
    def is_finite(self) -> bool:
        """Whether every data task reported, or nothing received is NaN or inf."""
        if isinstance(self.refusal, NotFiniteError):
            return False
        if self.has_all_data(self.results):
            return True
        leaves = (leaf for one in self.results.values() for leaf in one.leaves)
        return all(leaf.dtype.kind not in "fc" or bool(np.isfinite(leaf).all()) for leaf in leaves)

    # -- what the report tells --------------------------------------------------------------

    @property
    def surplus(self) -> list[int]:
        """Tasks whose results nothing was decoded from, but for those of data blocks."""
        used = (
            self.decoder.arrived_mask if len(self.decoder.missing_indices) else np.zeros(self._code.n, bool)
        )
        return [index for index in range(len(self._code.systematic_indices), self._code.n) if not used[index]]

    def accuracy(self) -> dict[str, Any]:
        """Fields of the report: which results were decoded, and how accurately."""
        recovered = self.recovered
        if not recovered:
            return {}
        exact = self.decoder.modular and all(map(is_integer_dtype, self.dtypes()))
        return {
            "recovered": tuple(recovered),
            "amplification": 0.0 if exact else self.checks.amplification,
            "error_bound": self.checks.error_bound(),
        }

    @property
    def recovered(self) -> list[int]:
        """The data blocks whose results are not those of their tasks."""
        missing: list[int] = self.decoder.missing_indices.tolist()
        own = None if self.unpadded is None else len(self._code.systematic_indices) - 1
        return [index for index in missing if index != own]

    def told(self, ended: float) -> dict[str, Any]:
        """Fields of the report of a map that was over in second `ended`."""
        waited, is_checked = 0.0, self.verification in ("parity", "local")
        if self.verification not in ("not needed", "no"):
            waited = max(0.0, ended - (self.ready_at or 0.0) - self.decode_seconds)
        self._note_padding()
        return {
            "needed": self.needed,
            "encode_seconds": self.coded.encode_seconds - self._earlier_encoding,
            "decode_seconds": self.decode_seconds,
            "surplus_seconds": waited,
            "residual": self.checks.residual if "checks" in vars(self) else None,
            "verified": str(self.verification),
            "unchecked": self._unchecked() if is_checked else (),
            "last_block": self._how_short_block_came(),
            "evaluated_here": tuple(self.evaluated_here),
            **self.accuracy(),
        }

    # -- what the schedule asks -------------------------------------------------------------

    @property
    def threshold(self) -> int:
        """How many results determine the rest at the least."""
        return self._code.recovery_threshold

    @property
    def is_met(self) -> bool:
        """Whether no more results are needed."""
        is_determined = self.ready_at is not None and self.refusal is None
        return (self.verification is not None or is_determined) and self.awaited_task is None

    @property
    def is_protected(self) -> bool:
        """Whether parity helps: not where nothing can be decoded."""
        return self.refusal is None

    def would_be_met(self, tasks: Collection[int], accurately: bool = True) -> bool:
        """Whether results of these tasks would determine the rest; `accurately`: as well as is asked for.

        Where nothing can be decoded every data task has to report.
        """
        if self.refusal is not None:
            return self.has_all_data(tasks)
        if not self.results or len(tasks) < self.threshold:
            return len(tasks) >= self.threshold or self.has_all_data(tasks)
        limit = self.decoder.max_amplification if accurately else inf
        key = frozenset(tasks), self.decoder.modular, limit
        if key not in self._trials:  # a trial costs as much as decoding
            if len(self._trials) >= MOST_TRIALS:
                self._trials.clear()
            trial = ArrivalTracker(self._code, modular=self.decoder.modular, max_amplification=limit)
            for index in tasks:
                trial.add(index)
            self._trials[key] = trial.is_ready
        return self._trials[key]

    def is_within_reach(self, accurately: bool = True) -> bool:
        """Whether what arrived, still runs or is held back would do.

        Results that look odd now may turn out to be the usual ones.
        """
        awaited = self.awaited_task
        if awaited is not None:
            return awaited in self.tasks.coming
        coming = self.tasks.coming | self.tasks.held_back
        groups = [coming | group.keys() for group in self._groups.values()] or [coming]
        return any(self.would_be_met(group, accurately) for group in groups)

    def look_seconds(self) -> float:
        """Often once f may run here, or what is determined is inaccurate; at first more often.

        Not where results contradict each other: another one alone tells more.
        """
        since = self.determined_at if self.ready_at is None else self.ready_at
        if since is None or (self.refusal is not None and len(self.decoder.missing_indices)):
            return inf
        return min(max(0.02, (self.watch.elapsed - since) / 20), SETTLE_SECONDS)

    def settle_for_less(self) -> None:
        """Decode what arrived as accurately as it can be, or say that it does not tell enough."""
        if (awaited := self.awaited_task) is not None:
            self._give_up_on_short_block(awaited)
        if self.takes_less():
            return
        error = raised_too_often(self.tasks, self.would_be_met)
        if error is not None and self.refusal is None:
            raise error
        text = too_few(self.tasks, self.threshold)
        if self.refusal is not None:
            text = not_finite(self.tasks, self.threshold, self.data_count)
        self.give_up(NotDecodableError(text))

    def takes_less(self) -> bool:
        """Whether what arrived determines the rest at some accuracy, at which it is taken, or still may."""
        may_come = self.tasks.coming and self.is_within_reach(accurately=False)
        return bool(may_come) or (self.refusal is None and self.accept())

    def time_is_over(self, n_receiving: int = 0) -> None:
        """Raise CodedTimeoutError, which tells what was missing."""
        why = ""
        if self.awaited_task is not None and self.padding is not None:
            why = f"; task {self.padding.task} has to return, as {self.padding.described}"
        elif not self.is_protected:
            why = f"; results contain {NOT_FINITE}"
        elif self.ready_at is not None:
            why = "; they determine the rest, but f could not be verified in time (verify=False skips that)"
        elif len(self.results) >= self.threshold:
            why = "; they do not determine the rest, or not as accurately as rtol asks for"
        self.give_up(CodedTimeoutError(late(self.tasks, self.threshold, self.watch.limit, why, n_receiving)))

    def give_up(self, error: Exception) -> NoReturn:
        """Raise this error, or the refusal to decode results that would have been enough otherwise."""
        if isinstance(self.refusal, LASTING_REFUSALS):
            error = self.refusal
        raise error from self.tasks.first_cause

    def _is_accuracy_hopeless(self) -> bool:
        """Whether no result that would make decoding more accurate is worth waiting for any longer."""
        if self.determined_at is None or self.is_met or self.refusal is not None:
            return False
        return self.watch.elapsed - self.determined_at > self.patience
