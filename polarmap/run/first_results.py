"""The first result of each task, as it is: all that a map without a code needs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf

from polarmap.errors import NotDecodableError
from polarmap.executors.base import Outcome
from polarmap.run.failure_message import FailureMessage, raise_if_all_fail
from polarmap.run.tasks import TaskTable


class FirstResults:
    """The outcomes that count (the `Need` of a schedule): of each task the attempt that returned first.

    Attributes
    ----------
    outcomes : dict from task to Outcome
    arrived : dict from task to float
        When, in seconds after the start.
    """

    is_protected = True

    def __init__(self, tasks: TaskTable, note: Callable[[Outcome], None] | None = None) -> None:
        self._tasks, self._note = tasks, note
        self.outcomes: dict[int, Outcome] = {}
        self.arrived: dict[int, float] = {}

    def add(self, outcome: Outcome, elapsed: float) -> None:
        """Take in what became of an attempt; `note` is told of those that count."""
        if outcome.failure is None and outcome.task not in self.outcomes:
            self.outcomes[outcome.task], self.arrived[outcome.task] = outcome, elapsed
            if self._note is not None:
                self._note(outcome)

    @property
    def is_met(self) -> bool:
        """Whether every task has returned."""
        return len(self.outcomes) == len(self._tasks)

    @property
    def received(self) -> Collection[int]:
        """The tasks that have returned."""
        return self.outcomes.keys()

    def failed(self) -> list[int]:
        """Tasks of which no attempt runs or has returned; NotDecodableError if f fails everywhere."""
        found = sorted(self._tasks.failed)
        raise_if_all_fail(self._tasks, found, bool(self.outcomes), spare=0)
        return found

    def would_be_met(self, tasks: Collection[int]) -> bool:
        """Whether these are all tasks."""
        return len(set(tasks)) == len(self._tasks)

    def is_out_of_reach(self) -> bool:
        """Whether a task has failed: none can do for another."""
        return bool(self._tasks.failed)

    def look_seconds(self) -> float:
        """Nothing else is waited for."""
        return inf

    def settle_for_less(self, nothing_can_come: bool) -> None:
        """Less than all results are of no use."""
        if nothing_can_come or self._tasks.failed:
            message = self._message.too_few(not_finite=False, nothing=nothing_can_come)
            raise NotDecodableError(message) from self._tasks.first_cause

    def timed_out(self, timeout: float) -> tuple[str, BaseException | None]:
        """What to say when the timeout has passed, and the exception behind it."""
        return self._message.late(timeout), self._tasks.first_cause

    @property
    def _message(self) -> FailureMessage:
        return FailureMessage(
            self._tasks,
            len(self._tasks),
            arrived=self.outcomes,
            received=self.outcomes,
            data=len(self.outcomes),
            is_ready=False,
            running=sorted(self._tasks.running),
        )
