"""Which tasks of a map start later: parity on demand or after a while, late ones once more."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from polarmap.executors.base import Attempt
from polarmap.run.lateness import LateAttempts, LatenessRule, ParityRule
from polarmap.run.loop import Policy
from polarmap.run.need import Need
from polarmap.run.tasks import TaskTable

LEAST_SECONDS = 1e-9  # to wait: less may leave a clock where it is


class ParityAfter(Policy):
    """Data tasks start at once; parity tasks after so many seconds, or as soon as one has failed.

    Parameters
    ----------
    n, k : int
        Tasks, and those of data, which come first.
    seconds : float
        After which data that is not back is late.
    """

    def __init__(self, n: int, k: int, seconds: float) -> None:
        super().__init__(k)
        self._left: Sequence[int] = range(k, n)
        self._seconds = seconds

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """All parity, if it is time."""
        if not self._left or need.is_met or not need.is_protected:
            return ()
        if now < self._seconds and not need.failed():
            return ()
        due, self._left = self._left, ()
        return due

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until then; what is left later waits for news."""
        return max(LEAST_SECONDS, self._seconds - now) if self._left and now < self._seconds else inf


class LateTasks:
    """Which attempts that run are late, as the table of tasks tells when they began and what others took.

    Parameters
    ----------
    n : int
        Tasks, of which the `first` start at once.
    rule : LatenessRule
        When a task is late; one that waits for a slot is not.
    """

    def __init__(self, n: int, first: int, rule: LatenessRule) -> None:
        attempts: LateAttempts[Attempt] = LateAttempts(rule)
        self._kinds, self._of_task, self._first = {attempts}, [attempts] * n, first
        self._looked = self._learnt = 0  # how much of what the table has noted, and of its durations

    def add(self, attempts: LateAttempts[Attempt]) -> None:
        """There is one more task, of a kind of which these attempts are."""
        self._kinds.add(attempts)
        self._of_task.append(attempts)
        self._first += 1

    def at(self, tasks: TaskTable, now: float) -> set[Attempt]:
        """Those that are late, or were before."""
        self._update(tasks)
        return set().union(*(attempts.late_at(now) for attempts in self._kinds))

    def next_seconds(self, tasks: TaskTable, unbegun: bool, now: float) -> float:
        """Until the next one is, if nothing happens before; of those that are `unbegun` one may begin now."""
        self.at(tasks, now)  # what is late already is not waited for, whoever has asked
        wait = min(attempts.next_moment() for attempts in self._kinds) - now
        if unbegun:
            wait = min(wait, *(attempts.late_after() for attempts in self._kinds))
        return max(LEAST_SECONDS, wait)

    def _update(self, tasks: TaskTable) -> None:
        """Take in what the table has noted since it was looked at."""
        for index, attempt, took in tasks.durations[self._learnt :]:
            self._of_task[index].learn(took, is_later=attempt > 0 or index >= self._first)
        self._learnt = len(tasks.durations)
        for index, attempt in dict.fromkeys(tasks.noted[self._looked :]):
            task, attempts = tasks[index], self._of_task[index]
            if attempt in task.running and not task.returned:
                attempts.begin((index, attempt), task.began[attempt])
            else:
                for one in task.began if task.returned else (attempt,):
                    attempts.end((index, one))
        self._looked = len(tasks.noted)


class OnDemand(Policy):
    """As many tasks as are needed start at once; others in the place of late and failed ones.

    Parameters
    ----------
    n : int
        Tasks.
    rule : ParityRule
        When a task is late, and how many start in the place of late ones.
    upfront : int
        Parity tasks that start with the data.
    counts_decide : bool
        Whether any `recovery_threshold` results determine the others, as of the rotation kernel.
    """

    watches_starts = True  # a task that waits for a slot is not late

    def __init__(
        self,
        n: int,
        rule: ParityRule,
        upfront: int = 0,
        counts_decide: bool = True,
    ) -> None:
        started = min(n, rule.recovery_threshold + upfront)
        super().__init__(started)
        self._left: Sequence[int] = range(started, n)
        self._rule, self._counts_decide = rule, counts_decide
        self._late = LateTasks(n, started, rule.lateness)
        self._insufficient: tuple[frozenset[int], int] | None = None

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """As many parity tasks as late and failed ones make necessary."""
        if not self._left or need.is_met or not need.is_protected:
            return ()
        on_time = tasks.running.difference(index for index, _ in self._late.at(tasks, now))
        returned = len(tasks) - len(tasks.running) - len(tasks.failed) - len(tasks.held_back)
        count = self._rule.parity_to_start(returned, len(on_time), len(self._left))
        if not (self._counts_decide and on_time):
            count = max(count, self._missing(need, on_time, count))
        due, self._left = self._left[:count], self._left[count:]
        return due

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until the next running task becomes late; one that waits for a slot begins now."""
        return self._late.next_seconds(tasks, bool(tasks.unbegun), now) if self._left else inf

    def _missing(self, need: Need, on_time: set[int], count: int) -> int:
        """How many it takes where the number alone does not decide: sparse codes, poor conditioning."""
        counted = frozenset(on_time.union(need.received))
        if len(counted) + count < self._rule.recovery_threshold:
            return count
        while count < len(self._left) and not self._would_do(need, counted, count):
            count += 1
        return count

    def _would_do(self, need: Need, counted: frozenset[int], count: int) -> bool:
        """Whether these and the next ones that are held back determine the results."""
        if self._insufficient == (counted, count):
            return False
        would = need.would_be_met(counted.union(self._left[:count]))
        if not would:
            self._insufficient = (counted, count)
        return would


class Backups(Policy):
    """All tasks start at once, and a late one once more: whichever attempt returns first counts.

    Parameters
    ----------
    n : int
        Tasks.
    rule : LatenessRule
        When a task is late; one that waits for a slot is not.
    most : int
        Backups that one task may get; a backup may become late itself.
    """

    watches_starts = True

    def __init__(self, n: int, rule: LatenessRule, most: int) -> None:
        super().__init__(n)
        self._most, self._backups = most, [0] * n
        self._late = LateTasks(n, n, rule)

    def add(self, attempts: LateAttempts[Attempt]) -> None:
        """There is one more task, of a kind of which these attempts are."""
        self._late.add(attempts)
        self._backups.append(0)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """The tasks whose latest attempt is late."""
        late = self._late.at(tasks, now)
        due = sorted(task for task, attempt in late if attempt == max(tasks[task].running))
        due = [task for task in due if self._backups[task] < self._most]
        for task in due:
            self._backups[task] += 1
        return due

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until the next attempt becomes late; one that is not known to run may begin now."""
        unbegun = any(self._backups[task] < self._most for task in tasks.unbegun)
        return self._late.next_seconds(tasks, unbegun, now)
