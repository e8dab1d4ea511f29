"""Outcomes -> decoder -> results: the only loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy.typing as npt

from polarmap.arrivals import Arrivals, Task
from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import DType, is_exact
from polarmap.code.polar import PolarCode
from polarmap.encoded import Encoded
from polarmap.errors import CodedTimeoutError, NotDecodableError
from polarmap.estimate import estimate
from polarmap.executors.base import Executor
from polarmap.reserve import Reserve
from polarmap.settings import Settings
from polarmap.settle import Settlement
from polarmap.shortfall import Shortfall
from polarmap.stopwatch import Stopwatch
from polarmap.stored import Kept
from polarmap.tree import Structure
from polarmap.verify import Verifier
from polarmap.worker import Fault

Array = npt.NDArray[Any]

TICK_SECONDS = 0.25  # the longest the loop looks away from its deadlines
STALL_SECONDS = 1.0  # without news, before failed tasks are started again


@dataclass
class Collected:
    """What the loop hands back: flat results of the k data tasks and how they came about."""

    results: list[list[Array]]
    structure: Structure
    tasks: list[Task]
    decoder: Decoder
    needed: int
    decode_seconds: float
    surplus_seconds: float
    residual: float | None
    verified: str
    unchecked: list[int]
    dtypes: list[DType]  # whose rounding limits the results
    kept: dict[int, Kept]  # where those results lie that stayed in storage
    errors: tuple[float, ...] = ()  # of each result, if a deadline left some as estimates


class Collector:
    """Runs f on coded blocks until the results of the data blocks are determined."""

    def __init__(
        self,
        executor: Executor,
        f: Callable[[Any], Any],
        coded: Encoded,
        settings: Settings,
        show: Callable[[int, int], None],
        here: Callable[[Any], Any] | None = None,
    ) -> None:
        self._executor, self._f, self._coded, self._settings = executor, f, coded, settings
        self._show = show
        self._code = coded.code
        self._watch = Stopwatch(executor.now, settings.timeout)
        self._arrivals = Arrivals(coded, settings.rtol, self._model)
        self._verifier = Verifier(here or f, coded, self._arrivals, settings.rtol, settings.errors)
        self._settlement = Settlement(self._arrivals, self._verifier, settings, self._watch)
        self._reserve = Reserve(executor, self._arrivals, self._code, settings, self._watch)
        self._shortfall = Shortfall(self._arrivals, self._code.needed)
        self._news_at = 0.0

    def run(self, faults: Mapping[int, Fault]) -> Collected:
        """Start, collect, decode, verify; always stop the executor."""
        try:
            self._executor.start(self._f, self._coded, faults, self._reserve.first)
            while True:
                outcomes = self._executor.wait(self._patience())
                self._reserve.note_began()
                for outcome in outcomes:
                    self._news_at = self._watch.elapsed
                    self._arrivals.absorb(outcome, self._news_at)
                    self._show(len(self._arrivals.received), self._code.needed)
                how = self._settlement.look()
                if how is not None:
                    return self._collected(how)
                if self._settings.deadline is not None and self._watch.elapsed >= self._settings.deadline:
                    return self._at_the_deadline(self._settings.deadline)
                self._reserve.look()
                self._give_up_or_retry()
        finally:
            self._executor.stop()

    def _at_the_deadline(self, deadline: float) -> Collected:
        """What is exact, and estimates of the rest."""
        if not self._arrivals.received:
            raise CodedTimeoutError(
                f"no result arrived within the deadline of {deadline:g} s: nothing to estimate from"
            ) from self._shortfall.first_cause
        if self._settlement.not_finite:
            raise NotDecodableError(self._shortfall.too_few(not_finite=True))
        found = estimate(self._arrivals, cast(PolarCode, self._code))
        self._settlement.results = found.results
        self._arrivals.needed = self._arrivals.needed or self._arrivals.count
        return replace(self._collected("no"), errors=found.errors)

    def _collected(self, how: str) -> Collected:
        arrivals, settlement = self._arrivals, self._settlement
        assert arrivals.decoder is not None and settlement.results is not None
        waited = self._watch.elapsed - (arrivals.ready_at or 0.0) - settlement.decode_seconds
        precisions = [one if is_exact(one) else arrivals.precision(one) for one in arrivals.dtypes()]
        return Collected(
            results=settlement.results,
            structure=arrivals.structure,
            tasks=arrivals.tasks,
            decoder=arrivals.decoder,
            needed=arrivals.needed,
            decode_seconds=settlement.decode_seconds,
            surplus_seconds=0.0 if how in ("not needed", "no") else max(0.0, waited),
            residual=self._verifier.residual,
            verified=how,
            unchecked=self._verifier.unchecked() if how in ("parity", "local") else [],
            dtypes=precisions,
            kept={index: one.kept for index, one in arrivals.received.items() if one.kept is not None},
        )

    def _model(self) -> list[Array] | None:
        return self._verifier.evaluate(0, self._watch.remaining)

    # -- deadlines, failures ----------------------------------------------------------------

    def _patience(self) -> float:
        """How long to look away: often once f may run here, less so the longer that takes."""
        tick, ready_at = min(TICK_SECONDS, self._reserve.patience()), self._arrivals.ready_at
        if ready_at is not None:
            tick = min(tick, max(0.02, (self._watch.elapsed - ready_at) / 20))
        if self._settings.deadline is not None:
            tick = min(tick, max(0.0, self._settings.deadline - self._watch.elapsed))
        return min(tick, max(0.0, self._watch.remaining))

    def _give_up_or_retry(self) -> None:
        if self._watch.remaining <= 0:
            raise CodedTimeoutError(self._shortfall.late(self._settings.timeout))
        failed, tasks = self._arrivals.failed, self._arrivals.tasks
        if not failed:
            return
        self._fail_if_hopeless(failed)
        not_finite = self._settlement.not_finite
        if self._arrivals.ready_at is not None and not not_finite:
            return
        idle = self._watch.elapsed - self._news_at > STALL_SECONDS
        stuck = not self._arrivals.could_finish(all_data=not_finite)
        again = [index for index in failed if tasks[index].attempts <= self._settings.retries]
        if again and (stuck or (idle and not self._reserve.left)):
            self._news_at = self._watch.elapsed
            self._arrivals.launch(again, self._news_at)
            self._executor.retry(again)
        elif stuck and not (self._settings.deadline is not None and self._arrivals.received):
            raise NotDecodableError(self._shortfall.too_few(not_finite)) from self._shortfall.first_cause

    def _fail_if_hopeless(self, failed: list[int]) -> None:
        """More tasks than the code can lose failed in the same way and none succeeded."""
        spare = self._code.n - self._code.needed
        if self._arrivals.received or len(failed) <= max(spare, self._code.n // 4, 1):
            return
        firsts = [self._arrivals.tasks[index].failures[0] for index in failed]
        if len({(one.kind, str(one)) for one in firsts}) == 1 and firsts[0].kind == "raised":
            raise NotDecodableError(
                f"f fails everywhere: the first {len(failed)} tasks to end all raised {firsts[0]}"
            ) from self._shortfall.first_cause
