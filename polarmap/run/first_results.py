"""The first result of each task, as it is: all that a map without a code needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

from polarmap.errors import NotDecodableError
from polarmap.executors.base import Coded, Function, Outcome, Payload
from polarmap.run.loop import Need, Stopwatch
from polarmap.run.options import MapOptions
from polarmap.run.policies import with_backups
from polarmap.run.reports import LazyReport
from polarmap.run.running_map import Observers, RunningMap
from polarmap.run.shortfall import as_raised, too_few
from polarmap.run.tasks import TaskTable
from polarmap.worker.messages import OutputSpec


class FirstResults(Need):
    """Over when each task has an outcome that counts: that of the attempt which returned first.

    Parameters
    ----------
    note : is told of each outcome that counts.
    keeps_failures : whether the failure of a task that is not tried again counts as its outcome, or ends the
        map.
    who : how the caller of the map calls a task, in what is said of an exception.
    """

    def __init__(
        self,
        note: Callable[[Outcome], None],
        keeps_failures: bool,
        who: Callable[[int], str],
        tasks: TaskTable,
        watch: Stopwatch,
    ) -> None:
        super().__init__(tasks, watch)
        self._note, self._keeps_failures, self._who = note, keeps_failures, who
        self._done: set[int] = set()

    def add(self, outcome: Outcome) -> None:
        """Take in what became of an attempt."""
        if outcome.failure is None and outcome.task not in self._done:
            self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        self._done.add(outcome.task)
        self._note(outcome)

    @property
    def outcomes(self) -> int:
        """How many there are, failures that count among them."""
        return len(self._done)

    @property
    def is_met(self) -> bool:
        """Whether there is an outcome of every task."""
        return self.outcomes == len(self.tasks)

    def check_failures(self) -> None:
        """Raise what f raises if it does so everywhere, unless failures count."""
        if not self._keeps_failures:
            super().check_failures()

    def look_seconds(self) -> float:
        """Nothing else is waited for; and nothing at all where failures have completed the outcomes."""
        return 0.0 if self.is_met else inf

    def settle_for_less(self) -> None:
        """Failures count, or the first ends the map: what f raised, or that a worker was lost."""
        for index in sorted(self.tasks.failed):
            failure = self.tasks[index].last_failure
            if self._keeps_failures:
                self.tasks.failed.discard(index)
                self._count(Outcome(index, self.tasks[index].attempts - 1, [], (), failure, 0.0))
            elif failure is not None and failure.cause is not None:
                raise as_raised(self._who(index), failure)
        if self.tasks.failed:
            raise NotDecodableError(too_few(self.tasks, self.threshold)) from self.tasks.first_cause


def run_uncoded(
    running: RunningMap,
    f: Function,
    blocks: Coded,
    options: MapOptions,
    observers: Observers,
    note: Callable[[Outcome], None],
    who: Callable[[int], str] = "task {}".format,
    *,
    backups: int = 0,
    output: OutputSpec | None = None,
    keeps_failures: bool = False,
) -> LazyReport:
    """Let `note` be told of the first result of f on every block, whatever it is; how they came about.

    `who` is how the caller calls a task; `backups`: that a late one may get; with `keeps_failures` `note` is
    told of failures, too, that count in the place of results.
    """
    running.check_limits(blocks)
    payload = Payload(f, blocks, output=output)
    need_of = partial(FirstResults, note, keeps_failures, who)
    return running.execute(payload, with_backups(blocks.n, backups), options, need_of, observers)[1]
