"""Outcomes -> decoder -> results: the only loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrivals import Arrivals, Task
from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import DType, is_exact
from polarmap.encoded import Encoded
from polarmap.errors import CodedTimeoutError, NotDecodableError
from polarmap.executors.base import Executor
from polarmap.tree import Structure
from polarmap.verify import NotFiniteError, Verifier
from polarmap.worker import Fault

Array = npt.NDArray[Any]

TICK_SECONDS = 0.25  # the longest the loop looks away from its deadlines
SURPLUS_SECONDS = (0.2, 10.0)  # bounds of the wait for a result to check against
STALL_SECONDS = 1.0  # without news, before failed tasks are started again


@dataclass(frozen=True)
class Settings:
    """What the caller of coded_map chose."""

    verify: bool | str = "auto"
    rtol: float | None = None
    timeout: float | None = None
    retries: int = 1


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
    dtypes: list[DType]  # whose rounding limits the results


class Collector:
    """Runs f on coded blocks until the results of the data blocks are determined."""

    def __init__(
        self,
        executor: Executor,
        f: Callable[[Any], Any],
        coded: Encoded,
        settings: Settings,
        show: Callable[[int, int], None],
    ) -> None:
        self._executor, self._f, self._coded, self._settings = executor, f, coded, settings
        self._show = show
        self._code = coded.code
        self._arrivals = Arrivals(coded, settings.rtol, self._model)
        self._verifier = Verifier(f, coded, self._arrivals, settings.rtol)
        self._results: list[list[Array]] | None = None
        self._decode_seconds = 0.0
        self._not_finite = False
        self._news_at = 0.0

    def run(self, faults: Mapping[int, Fault]) -> Collected:
        """Start, collect, decode, verify; always stop the executor."""
        self._began = self._news_at = self._executor.now()
        try:
            self._executor.start(self._f, self._coded, faults)
            while True:
                for outcome in self._executor.wait(self._patience()):
                    self._news_at = self._executor.now()
                    self._arrivals.absorb(outcome, self._elapsed())
                    self._show(len(self._arrivals.received), self._code.needed)
                how = self._settle()
                if how is not None:
                    return self._collected(how)
                self._give_up_or_retry()
        finally:
            self._executor.stop()

    # -- the end ----------------------------------------------------------------------------

    def _settle(self) -> str | None:
        """How the results are verified, once they are determined and that is settled."""
        decoder = self._arrivals.decoder
        if decoder is None or not decoder.ready:
            return None
        if not len(decoder.missing):
            if self._not_finite:
                self._arrivals.needed = decoder.count
            self._decode()
            return "not needed"
        if self._not_finite:
            return None
        try:
            return self._verify(decoder)
        except NotFiniteError:  # nothing can be decoded: every data task has to report
            self._not_finite = True
            return None

    def _verify(self, decoder: Decoder) -> str | None:
        if self._settings.verify is False:
            self._decode()
            return "no"
        if decoder.surplus:
            return self._check_surplus()
        if self._settings.verify == "auto" and self._verifier.has_passed_before:
            self._decode()
            return "earlier"
        return self._check_locally(decoder) if self._surplus_wait_is_over() else None

    def _check_surplus(self) -> str | None:
        more = self._arrivals.more_may_come and not self._surplus_wait_is_over()
        holds, failure, culprit = self._verifier.surplus_holds(more, self._remaining())
        if failure is not None:
            self._arrivals.drop(culprit, failure, self._elapsed())
        if not holds:
            return None
        self._decode()
        self._verifier.note_passed()
        return "parity"

    def _check_locally(self, decoder: Decoder) -> str | None:
        """Evaluate f on a block that has to be decoded, in a thread, while results may still come."""
        missing = decoder.missing.tolist()
        if not self._verifier.local_run_is_over(missing[0], missing, self._arrivals.more_may_come):
            return None
        if not self._verifier.local_run_agrees(self._decode()):
            return "no"
        self._verifier.note_passed()
        return "local"

    def _decode(self) -> list[list[Array]]:
        """The results of all data tasks; NotFiniteError if NaN or inf got in the way."""
        began = self._executor.now()
        self._results = self._arrivals.decode()
        self._decode_seconds = self._executor.now() - began
        if self._results is None:
            raise NotFiniteError
        return self._results

    def _collected(self, how: str) -> Collected:
        arrivals = self._arrivals
        assert arrivals.decoder is not None and self._results is not None
        waited = self._elapsed() - (arrivals.ready_at or 0.0) - self._decode_seconds
        precisions = [one if is_exact(one) else arrivals.precision(one) for one in arrivals.dtypes()]
        return Collected(
            results=self._results,
            structure=arrivals.structure,
            tasks=arrivals.tasks,
            decoder=arrivals.decoder,
            needed=arrivals.needed,
            decode_seconds=self._decode_seconds,
            surplus_seconds=0.0 if how in ("not needed", "no") else max(0.0, waited),
            residual=self._verifier.residual,
            verified=how,
            dtypes=precisions,
        )

    def _model(self) -> list[Array] | None:
        return self._verifier.evaluate(0, self._remaining())

    # -- deadlines, failures ----------------------------------------------------------------

    def _elapsed(self) -> float:
        return self._executor.now() - self._began

    def _remaining(self) -> float:
        return np.inf if self._settings.timeout is None else self._settings.timeout - self._elapsed()

    def _patience(self) -> float:
        """How long to look away."""
        tick = TICK_SECONDS if self._arrivals.ready_at is None else 0.02
        return min(tick, max(0.0, self._remaining()))

    def _surplus_wait_is_over(self) -> bool:
        """At most one median task time, and always within SURPLUS_SECONDS."""
        assert self._arrivals.ready_at is not None
        low, high = SURPLUS_SECONDS
        usual = median(task.seconds for task in self._arrivals.tasks if task.seconds is not None)
        over = self._elapsed() - self._arrivals.ready_at >= min(max(low, usual), high)
        return over or not self._arrivals.more_may_come

    def _give_up_or_retry(self) -> None:
        if self._remaining() <= 0:
            raise CodedTimeoutError(self._late())
        failed, tasks = self._arrivals.failed, self._arrivals.tasks
        if not failed:
            return
        self._fail_if_hopeless(failed)
        if self._arrivals.ready_at is not None and not self._not_finite:
            return
        idle = self._executor.now() - self._news_at > STALL_SECONDS
        stuck = not self._arrivals.could_finish(all_data=self._not_finite)
        again = [index for index in failed if tasks[index].attempts <= self._settings.retries]
        if again and (idle or stuck):
            for index in again:
                tasks[index].attempts += 1
                tasks[index].running = True
            self._news_at = self._executor.now()
            self._executor.retry(again)
        elif stuck:
            raise NotDecodableError(self._too_few()) from self._first_cause()

    def _fail_if_hopeless(self, failed: list[int]) -> None:
        """More tasks than the code can lose failed in the same way and none succeeded."""
        if self._arrivals.received or len(failed) <= self._code.n - self._code.needed:
            return
        firsts = [self._arrivals.tasks[index].failures[0] for index in failed]
        if len({(one.kind, str(one)) for one in firsts}) == 1 and firsts[0].kind == "raised":
            raise NotDecodableError(
                f"f fails everywhere: the first {len(failed)} tasks to end all raised {firsts[0]}"
            ) from self._first_cause()

    # -- words ------------------------------------------------------------------------------

    def _first_cause(self) -> BaseException | None:
        causes = (failure.cause for task in self._arrivals.tasks for failure in task.failures)
        return next((cause for cause in causes if cause is not None), None)

    def _counted(self) -> str:
        return f"{self._arrivals.count} of {self._code.needed} needed results"

    def _failures(self) -> str:
        tasks = self._arrivals.tasks
        last = [str(task.failures[-1]) for task in tasks if task.arrived is None and task.failures]
        parts = [f"{_tasks(count)}: {text}" for text, count in Counter(last).most_common(3)]
        return "; failed " + "; ".join(parts) if parts else ""

    def _late(self) -> str:
        running = sum(task.running for task in self._arrivals.tasks)
        still = f"{_tasks(running)} still run{'s' * (running == 1)}"
        head = f"{self._counted()} arrived within {self._settings.timeout:g} s, {still}"
        if self._arrivals.ready_at is not None:
            head += "; they determine the rest, but f could not be verified in time (verify=False skips that)"
        return head + self._failures()

    def _too_few(self) -> str:
        if self._not_finite:
            return (
                "results contain NaN or inf, which parity carries into every block that is decoded, and "
                f"not all data tasks reported: {self._counted()}{self._failures()}"
            )
        have = self._arrivals.count
        running = sum(task.running for task in self._arrivals.tasks)
        still = f", {_tasks(running)} still run{'s' * (running == 1)}" if running else ""
        if have + running >= self._code.needed:
            return (
                f"{have} results arrived{still}, but decoding them would be too inaccurate for rtol or not "
                f"possible with this code, and no more can come{self._failures()}"
            )
        if running:
            return (
                f"only {have + running} of {self._code.needed} needed results can arrive: {have} did{still}"
                f"{self._failures()}"
            )
        return f"{self._counted()} arrived and no more can{self._failures()}"


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"
