"""Outcomes -> decoders -> results: the only loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.code.polar import PolarCode
from polarmap.errors import CodedTimeoutError, NotDecodableError
from polarmap.executors.base import Run
from polarmap.run import trusted
from polarmap.run.codeword import Codeword, by_subtask, joined
from polarmap.run.estimate import estimate
from polarmap.run.failure_message import Shortfall
from polarmap.run.options import Settings
from polarmap.run.padding import PaddingRows
from polarmap.run.reserve import Reserve
from polarmap.run.row_by_row import RowwiseCheck
from polarmap.run.stopwatch import Stopwatch
from polarmap.worker.parts import Kept
from polarmap.worker.pytree import Structure

Array = npt.NDArray[Any]

TICK_SECONDS = 0.25  # the longest the loop looks away from its deadlines
STALL_SECONDS = 1.0  # without news, before failed tasks are started again


@dataclass
class Collected:
    """What the loop hands back: flat results of the k data tasks and how they came about."""

    results: list[list[Array]]
    structure: Structure
    words: list[Codeword]  # one, or one for each subtask; all settled
    kept: dict[int, Kept]  # where those results lie that stayed in storage
    seconds: float
    rows: tuple[bool, ...] = ()  # for each leaf, whether rows of it that come from padding are cut off
    errors: tuple[float, ...] = ()  # of each result, if a deadline left some as estimates


class Collector:
    """Runs f on coded blocks until the results of the data blocks are determined."""

    def __init__(
        self,
        run: Run,
        f: Callable[[Any], Any],
        coded: CodedData,
        settings: Settings,
        show: Callable[[int, int], None],
        here: Callable[[Any], Any] | None = None,
    ) -> None:
        self._run, self._f, self._coded, self._settings = run, f, coded, settings
        self._show = show
        self._code = coded.code
        self._watch = watch = Stopwatch(run.now, settings.timeout)
        here = here or f
        is_known = settings.trusted or bool(trusted.recall(here, coded.code.assumption, coded.blocks.dtypes))
        self._words = [
            Codeword(here, coded, settings, watch, is_known, one) for one in range(settings.subtasks)
        ]
        self._reserve = Reserve(run, self._words[0].arrivals, self._code, settings, watch)
        self._news_at = 0.0
        self._has_said = False

    def run(self) -> Collected:
        """Start, collect, decode, verify; whoever opened the run closes it."""
        self._run.submit(self._reserve.first)
        rowwise = RowwiseCheck(self._f, self._coded, self._settings, self._watch)
        self._padding = PaddingRows(self._f, self._coded, self._settings, self._watch)
        while True:
            self._take_in()
            self._say_what_is_not_protected()
            settled = [word.look() for word in self._words]
            self._spread_garbage()
            stand = all(settled) and all(word.how for word in self._words)
            done = stand and rowwise.is_over(self._words, self._results)
            if done and self._padding.is_over(self._words):
                return self._collected()
            if self._settings.deadline is not None and self._watch.elapsed >= self._settings.deadline:
                return self._at_the_deadline(self._settings.deadline)
            if self._reserve.look():  # give these time, before failed ones are tried again
                self._news_at = self._watch.elapsed
            self._give_up_or_retry()

    def _at_the_deadline(self, deadline: float) -> Collected:
        """What is exact, and estimates of the rest; of a map without subtasks."""
        [word] = self._words
        if not word.arrivals.received:
            raise CodedTimeoutError(
                f"no result arrived within the deadline of {deadline:g} s: nothing to estimate from"
            ) from self._shortfall.first_cause
        if word.settlement.not_finite or not word.arrivals.all_finite():
            raise NotDecodableError(self._shortfall.too_few(not_finite=True)) from self._shortfall.first_cause
        found = estimate(word.arrivals, cast(PolarCode, self._code))
        if word.verifier.contradicts():
            missing = word.decoder.missing.tolist()
            errors = [inf if index in missing else error for index, error in enumerate(found.errors)]
            found = found._replace(errors=tuple(errors))
            warnings.warn(
                f"the parity equations are off by {word.verifier.residual:.2g} (relative): f is not linear, "
                "or a worker returned garbage, so what is decoded or estimated may be far off",
                RuntimeWarning,
                stacklevel=2,
            )
        word.settlement.results, word.how = found.results, "no"
        word.arrivals.needed = word.arrivals.needed or word.arrivals.count
        return self._collected(found.errors)

    def _take_in(self) -> None:
        outcomes = self._run.wait(self._patience())
        self._reserve.note_began()
        for outcome in outcomes:
            self._news_at = self._watch.elapsed
            for number, part in by_subtask(outcome, len(self._words)):
                self._words[number].take_in(part, self._news_at)
            arrived = min(len(word.arrivals.received) for word in self._words)
            self._show(arrived, self._code.recovery_threshold)

    def _say_what_is_not_protected(self) -> None:
        """Once, when the blocks have been encoded."""
        if self._coded.unprotected_warning and not self._has_said:
            self._has_said = True
            warnings.warn(self._coded.unprotected_warning, RuntimeWarning, stacklevel=2)

    def _spread_garbage(self) -> None:
        """A worker whose result contradicts the others in one codeword is not trusted in any."""
        if len(self._words) > 1:
            for one in self._words:
                for task, (attempt, failure) in one.garbage.items():
                    for word in self._words:
                        if word.arrivals.convicted.get(task, -1) < attempt:
                            word.distrust(task, attempt, failure)

    def _results(self) -> list[list[Array]]:
        return joined([word.results for word in self._words])

    def _collected(self, errors: tuple[float, ...] = ()) -> Collected:
        arrivals = self._words[0].arrivals
        inaccurate = [word.error_bound for word in self._words if word.arrivals.is_inaccurate]
        if inaccurate:
            warnings.warn(
                "what arrived determines the other results, but no more accurately than to "
                f"{max(inaccurate):.2g} (relative), which is more than rtol: no further result came",
                RuntimeWarning,
                stacklevel=2,
            )
        results = self._results()
        kept = {index: one.kept for index, one in arrivals.received.items() if one.kept is not None}
        if kept:  # what is here is a sample
            shapes = [shape for _, shape in kept[min(kept)].layout]
        else:
            shapes = [leaf.shape for leaf in results[0]]
        return Collected(
            results=results,
            structure=arrivals.structure,
            words=self._words,
            kept=kept,
            seconds=self._watch.elapsed,
            rows=self._padding.found(self._words, shapes),
            errors=errors,
        )

    # -- deadlines, failures ----------------------------------------------------------------

    def _patience(self) -> float:
        """How long to look away: often once f may run here, less so the longer that takes."""
        tick = min(TICK_SECONDS, self._reserve.patience())
        for ready_at in (word.arrivals.ready_at for word in self._words):
            if ready_at is not None:
                tick = min(tick, max(0.02, (self._watch.elapsed - ready_at) / 20))
        if self._settings.deadline is not None:
            tick = min(tick, max(0.0, self._settings.deadline - self._watch.elapsed))
        return min(tick, max(0.0, self._watch.remaining))

    def _give_up_or_retry(self) -> None:
        if self._watch.remaining <= 0:
            raise CodedTimeoutError(self._shortfall.late(self._settings.timeout, self._is_not_finite))
        pending = [word for word in self._words if word.is_short]
        if not pending:
            return
        failed = sorted({task for word in pending for task in word.arrivals.failed})
        if failed:
            self._fail_if_hopeless(failed)
        idle = self._watch.elapsed - self._news_at > STALL_SECONDS
        stuck = [word for word in pending if failed and not word.could_finish()]
        tasks = self._words[0].arrivals.tasks
        again = [index for index in failed if tasks[index].attempts <= self._settings.retries]
        nothing = self._nothing_can_come()
        if again and (stuck or nothing or (idle and not self._reserve.left)):
            self._news_at = self._watch.elapsed
            for word in self._words:
                word.arrivals.launch(again, self._news_at)
            self._run.submit(again)
            return
        for word in pending:
            if nothing or word in stuck or word.settlement.is_accuracy_hopeless():
                self._make_do(word, nothing)

    def _nothing_can_come(self) -> bool:
        """Whether a map without a limit would wait for ever, as the executor knows."""
        if self._settings.timeout is not None or self._settings.deadline is not None:
            return False
        if self._reserve.left and not self._is_not_finite:  # where parity is of no use
            return False
        return self._run.is_exhausted()

    def _make_do(self, word: Codeword, nothing: bool) -> None:
        """Decode what arrived as accurately as it can be, or say that it does not tell enough."""
        may_come = word.arrivals.more_may_come and not word.settlement.is_accuracy_hopeless()
        if may_come and not nothing and word.could_finish(accurately=False):
            return
        if not word.settlement.not_finite and word.arrivals.accept(self._watch.elapsed):
            return
        if self._settings.deadline is not None and word.arrivals.received:
            return
        short = self._shortfall
        raise NotDecodableError(short.too_few(word.settlement.not_finite, nothing)) from short.first_cause

    @property
    def _is_not_finite(self) -> bool:
        """Whether NaN or inf among the results keeps a codeword from being decoded."""
        return any(word.settlement.not_finite for word in self._words)

    def _fail_if_hopeless(self, failed: list[int]) -> None:
        """More tasks than the code can lose failed in the same way and none succeeded."""
        spare, arrivals = self._code.n - self._code.recovery_threshold, self._words[0].arrivals
        if any(word.arrivals.received for word in self._words):
            return
        if len(failed) <= max(spare, self._code.n // 4, 1):
            return
        firsts = [arrivals.tasks[index].failures[0] for index in failed]
        if len({(one.kind, str(one)) for one in firsts}) == 1 and firsts[0].kind == "raised":
            raise NotDecodableError(
                f"f fails everywhere: the first {len(failed)} tasks to end all raised {firsts[0]}"
            ) from self._shortfall.first_cause

    @property
    def _shortfall(self) -> Shortfall:
        """Of the codeword of which least has arrived."""
        unsettled = [word for word in self._words if word.how is None] or self._words
        worst = min(unsettled, key=lambda word: word.arrivals.count)
        return Shortfall(worst.arrivals, self._code.recovery_threshold)
