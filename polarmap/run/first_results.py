"""The first result of each task, as it is: all that a map without a code needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from polarmap.errors import NotDecodableError
from polarmap.executors.interface import Function, JobSpec, Outcome, TaskBlocks
from polarmap.run.batches import Batches
from polarmap.run.loop import Need, Stopwatch
from polarmap.run.options import MapOptions
from polarmap.run.policies import with_backups
from polarmap.run.reports import LazyReport
from polarmap.run.running_map import Observers, RunningMap
from polarmap.run.shortfall import as_raised, too_few, with_other_failures
from polarmap.run.tasks import TaskTable
from polarmap.worker.pytree import Array
from polarmap.worker.task_records import OutputSpec

Take = Callable[[Sequence[tuple[int, bytes | Array]]], None]


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
            failed, task = self.tasks[index], self._told_as(index)
            failure = failed.last_raised or failed.last_failure
            if self._keeps_failures:
                self.tasks.failed.discard(index)
                self._count(Outcome(task, failed.attempts - 1, [], (), failure, 0.0))
            elif failure is not None and failure.cause is not None:
                error = as_raised(self._who(task), failure)
                raise with_other_failures(error, failure, self.as_told()())
        if self.tasks.failed:
            tasks = self.as_told()()
            raise NotDecodableError(too_few(tasks, self.threshold)) from tasks.first_cause

    def _told_as(self, index: int) -> int:
        """The number of a task as the caller of the map counts."""
        return index


class FirstOfItems(FirstResults):
    """The same of items, of which a task may be several.

    batches : policy and blocks of the map.
    count : how many items there are.
    take : is told what some have given that had given nothing before, by number.
    """

    def __init__(self, batches: Batches, count: int, take: Take, *known: Any) -> None:
        super().__init__(*known)
        self._batches, self._items, self._take = batches, count, take

    def add(self, outcome: Outcome) -> None:
        """Take in what became of the items of an attempt; those that failed are tried again alone."""
        ends = self._batches.ended(self.tasks, outcome)
        if ends is None:
            return
        _, data, failures = ends
        new = [one for one in data if one[0] not in self._done]
        self._done.update(number for number, _ in new)
        self._take(new)
        for number, failure in failures if outcome.failure is None else ():
            self._batches.part(self.tasks, outcome.task, number, failure)

    @property
    def threshold(self) -> int:
        """How many items there are."""
        return self._items

    @property
    def is_met(self) -> bool:
        """Whether there is an outcome of every item."""
        return self.outcomes == self._items

    def look_seconds(self) -> float:
        """At first not at all: the policy is still to say what starts."""
        return super().look_seconds() if len(self.tasks) else 0.0

    def as_told(self) -> Callable[[], TaskTable]:
        """Each item as a task."""
        parts = {index: numbers for index, (_, numbers) in self._batches.batches.copy().items()}
        return partial(self.tasks.regrouped, parts, self._items)

    def _told_as(self, index: int) -> int:
        return self._batches.batches[index][1][0]


def run_uncoded(
    running: RunningMap,
    f: Function,
    blocks: TaskBlocks,
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
    payload = JobSpec(f, blocks, output_spec=output)
    need_of = partial(FirstResults, note, keeps_failures, who)
    return running.execute(payload, with_backups(blocks.n, backups), options, need_of, observers)[1]
