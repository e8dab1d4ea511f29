"""Which tasks of a map start when: all at once, parity on demand, late ones once more."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from polarmap.planning.backups import BackupRule
from polarmap.planning.on_demand import ParityRule
from polarmap.run.schedule import Need
from polarmap.run.tasks import TaskTable

LEAST_SECONDS = 1e-9  # to wait: less may leave a clock where it is


class Upfront:
    """All tasks start at once."""

    watches_starts = holds_back = False

    def __init__(self, n: int) -> None:
        self.first: Sequence[int] = range(n)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Nothing is left to start."""
        return ()

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Nothing will be due."""
        return inf


class OnDemand:
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

    def __init__(
        self,
        n: int,
        rule: ParityRule,
        upfront: int = 0,
        counts_decide: bool = True,
    ) -> None:
        started = min(n, rule.recovery_threshold + upfront)
        self.first: Sequence[int] = range(started)
        self._left: Sequence[int] = range(started, n)
        self._rule, self._counts_decide = rule, counts_decide
        self._insufficient: tuple[frozenset[int], int] | None = None

    @property
    def watches_starts(self) -> bool:
        """A task that waits for a slot is not late."""
        return bool(self._left)

    @property
    def holds_back(self) -> bool:
        """Whether parity is left."""
        return bool(self._left)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """As many parity tasks as late and failed ones make necessary."""
        if not self._left or need.is_met or not need.is_protected:
            return ()
        first, later = self._taken(tasks)
        moments = self._late_from(tasks, now, first, later)
        on_time = frozenset(task for task, moment in moments.items() if moment > now)
        count = self._rule.parity_to_start(len(first) + len(later), len(on_time), len(self._left))
        count = max(count, self._missing(need, on_time, count))
        due, self._left = self._left[:count], self._left[count:]
        return due

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until the next running task becomes late."""
        if not self._left:
            return inf
        moments = self._late_from(tasks, now, *self._taken(tasks)).values()
        return max(LEAST_SECONDS, min((moment - now for moment in moments if moment > now), default=inf))

    def _taken(self, tasks: TaskTable) -> tuple[list[float], list[float]]:
        """What tasks took that returned: those started at once, and those started later."""
        took: tuple[list[float], list[float]] = [], []
        for index in range(len(tasks)):
            seconds = tasks[index].took
            if seconds is not None:
                took[index not in self.first].append(seconds)
        return took

    def _late_from(
        self, tasks: TaskTable, now: float, first: list[float], later: list[float]
    ) -> dict[int, float]:
        """When each running task becomes late, or did; one that waits for a slot begins now."""
        running = sorted(tasks.running)
        began = [now if (when := tasks[task].began) is None else when for task in running]
        return dict(zip(running, self._rule.late_moments(first, began, later)))

    def _missing(self, need: Need, on_time: frozenset[int], count: int) -> int:
        """How many it takes where the number alone does not decide: sparse codes, poor conditioning."""
        counted = on_time.union(need.received)
        if len(counted) + count < self._rule.recovery_threshold or (self._counts_decide and on_time):
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


class Backups:
    """All tasks start at once, and a late one once more: whichever attempt returns first counts."""

    watches_starts = holds_back = False

    def __init__(self, n: int, rule: BackupRule) -> None:
        self.first: Sequence[int] = range(n)
        self._n, self._rule = n, rule
        self._backups = [0] * n
        self._looked = 0  # attempts, in the order in which they were started and so become late
        self._late: set[int] = set()  # tasks of which one did

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """The tasks whose latest attempt is late."""
        age = self._rule.late_after(tasks.durations, self._n)
        while self._looked < len(tasks.started) and tasks.started[self._looked][0] + age <= now:
            self._late.add(tasks.started[self._looked][1])
            self._looked += 1
        self._late = {task for task in self._late if self._may_back_up(tasks, task)}
        due = [task for task in sorted(self._late) if self._late_from(tasks, task, age) <= now]
        for task in due:
            self._backups[task] += 1
        return due

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until the next attempt becomes late."""
        age = self._rule.late_after(tasks.durations, self._n)
        while self._looked < len(tasks.started) and tasks[tasks.started[self._looked][1]].returned:
            self._looked += 1
        oldest = [when + age for when, _ in tasks.started[self._looked : self._looked + 1]]
        others = [self._late_from(tasks, task, age) for task in self._late]
        return max(0.0, min([*oldest, *others], default=inf) - now)

    def _may_back_up(self, tasks: TaskTable, task: int) -> bool:
        return not tasks[task].returned and self._backups[task] < self._rule.max_backups

    def _late_from(self, tasks: TaskTable, index: int, age: float) -> float:
        """When the latest attempt of a task that runs becomes late, or did; inf if none counts."""
        task = tasks[index]
        if not task.running or not self._may_back_up(tasks, index):
            return inf
        return task.submitted[max(task.running)] + age
