"""The first result of each task, as it is: all that a map without a code needs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf
from typing import Any

from polarmap.errors import NotDecodableError
from polarmap.executors.base import Outcome
from polarmap.report import Report
from polarmap.run.loop import Stopwatch
from polarmap.run.tasks import FailureMessage, TaskTable, as_raised, raise_if_all_fail


class FirstResults:
    """The outcomes that count (the `Need` of a schedule): of each task the attempt that returned first.

    Parameters
    ----------
    note : callable, optional
        Is told of each outcome that counts.
    keeps_failures : bool
        Whether the failure of a task that is not tried again counts as its outcome, or ends the map.
    who : callable
        How the caller of the map calls a task, in what is said of an exception.

    Attributes
    ----------
    outcomes : dict from task to Outcome
    arrived : dict from task to float
        When, in seconds after the start, of those that returned.
    """

    is_protected = True
    surplus = ()

    def __init__(
        self,
        note: Callable[[Outcome], None] | None,
        keeps_failures: bool,
        who: Callable[[int], str],
        tasks: TaskTable,
        watch: Stopwatch,
    ) -> None:
        self._note, self._keeps_failures, self._who = note, keeps_failures, who
        self._tasks, self._watch = tasks, watch
        self.outcomes: dict[int, Outcome] = {}
        self.arrived: dict[int, float] = {}

    def add(self, outcome: Outcome) -> None:
        """Take in what became of an attempt."""
        if outcome.failure is None and outcome.task not in self.outcomes:
            self.arrived[outcome.task] = self._watch.elapsed
            self._count(outcome)

    def step(self) -> bool:
        """Whether the map is over."""
        return self.is_met

    def told(self, ended: float) -> dict[str, Any]:
        """What the report says of first results."""
        return {"verified": "not needed"}

    def early_result(self, task: int) -> None:
        """`note` is told of it."""

    def estimate(self, report: Report) -> None:
        """There is no telling."""

    def _count(self, outcome: Outcome) -> None:
        self.outcomes[outcome.task] = outcome
        if self._note is not None:
            self._note(outcome)

    @property
    def is_met(self) -> bool:
        """Whether there is an outcome of every task."""
        return len(self.outcomes) == len(self._tasks)

    @property
    def received(self) -> Collection[int]:
        """The tasks that have returned."""
        return self.outcomes.keys()

    def failed(self) -> list[int]:
        """Tasks of which no attempt runs or has returned; raises what f raises if it does so everywhere."""
        found = sorted(self._tasks.failed)
        if found and not self._keeps_failures:
            raise_if_all_fail(self._tasks, bool(self.outcomes), spare=0)
        return found

    def would_be_met(self, tasks: Collection[int]) -> bool:
        """Whether these are all tasks."""
        return len(set(tasks)) == len(self._tasks)

    def is_out_of_reach(self) -> bool:
        """Whether a task has failed: none can do for another."""
        return bool(self._tasks.failed)

    def look_seconds(self) -> float:
        """Nothing else is waited for; and nothing at all where failures have completed the outcomes."""
        return 0.0 if self.is_met else inf

    def settle_for_less(self, nothing_can_come: bool) -> None:
        """Failures count, or the first ends the map: what f raised, or that a worker was lost."""
        failed = sorted(self._tasks.failed)
        if self._keeps_failures:
            for index in failed:
                self._count_failure(index)
            return
        for index in failed:
            failure = self._tasks[index].last_failure
            if failure is not None and failure.cause is not None:
                raise as_raised(self._who(index), failure)
        if failed:
            message = self._message.too_few(nothing_can_come)
            raise NotDecodableError(message) from self._tasks.first_cause

    def _count_failure(self, index: int) -> None:
        """Give a task up, whatever its copies may still do."""
        self._tasks.failed.discard(index)
        if index not in self.outcomes:
            failure = self._tasks[index].last_failure
            self._count(Outcome(index, self._tasks[index].attempts - 1, None, None, failure, 0.0))

    def timed_out(self, timeout: float) -> tuple[str, BaseException | None]:
        """What to say when the timeout has passed, and the exception behind it."""
        return self._message.late(timeout), self._tasks.first_cause

    @property
    def _message(self) -> FailureMessage:
        return FailureMessage(self._tasks, len(self._tasks), self.arrived, self.arrived)
